"""Products with int8, fp8 and int4 weights beside bf16, at few and at many rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pallas_kernels.row_matmul import OP
from rtpjax.lab.products import compile_chain, num_calls, operands_of, products_of
from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import ROWS, DataSheet, model_config
from rtpjax.lab.timing import seconds_each
from rtpjax.models.weight_formats import Fp8, Int4, Int8

_FORMATS = {"bf16": None, "int8": Int8(), "fp8": Fp8(), "int4": Int4(128)}
_BITS = {"bf16": 16, "int8": 8, "fp8": 8, "int4": 4}
_PRODUCTS = ("gate_up", "down")


def run(lab: Lab) -> None:
    sheet = DataSheet.of(lab)
    products = products_of(model_config(lab))
    kernel: Any = OP.implementations["pallas"].function
    launch = partial(kernel, interpret=True) if lab.is_small else kernel
    cases = [
        (products[name], format, rows)
        for rows in lab.pick(ROWS, (2,))
        for name in _PRODUCTS
        for format in _FORMATS
    ]
    with ThreadPoolExecutor(lab.pick(12, 2)) as pool:
        programs = [
            pool.submit(
                compile_chain,
                product,
                rows,
                launch,
                is_small=lab.is_small,
                format=_FORMATS[format],
            )
            for product, format, rows in cases
        ]
    for (product, format, rows), program in zip(cases, programs, strict=True):
        id = f"quantized.{product.name}.{format}.{rows}"
        with lab.record.attempt(id):
            calls = num_calls(product, is_small=lab.is_small)
            every = operands_of(product, rows, calls, _FORMATS[format])
            s = seconds_each(partial(program.result(), every), calls=lab.pick(10, 1)) / calls
            least = sheet.us(product.bytes * _BITS[format] / 16)
            lab.record.measured(id, 1e6 * s, "us", limit=least)
