"""The products of a layer at few and at 64 rows: our tiles, those they replaced, others, XLA's."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from pallas_kernels.row_matmul import OP, TILINGS_AT_64_ROWS, Tiling
from rtpjax.lab.products import Product, around_of, chain, num_calls, operands_of, products_of
from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import ROWS, DataSheet, model_config
from rtpjax.lab.timing import seconds_each

_NARROW = 32


def run(lab: Lab) -> None:
    for product in products_of(model_config(lab)).values():
        for rows in lab.pick(ROWS, (64,)):
            with lab.record.attempt(f"tilings.{product.name}.{rows}"):
                _measure(lab, product, rows)


def _measure(lab: Lab, product: Product, rows: int) -> None:
    calls = num_calls(product, is_small=lab.is_small)
    every = operands_of(product, rows, calls)
    kernel: Any = OP.implementations["pallas"].function
    if lab.is_small:
        kernel = partial(kernel, interpret=True)
    around = around_of(product)
    now = Tiling.of(every[0], around)
    ways: dict[str, Any] = {"": now}
    if rows > _NARROW:
        before = Tiling.of(every[0], around, widest=_NARROW)
        ways[".before"] = before
        others = [t for t in TILINGS_AT_64_ROWS if t not in (now, before)]
        ways |= {f".{tiling}": tiling for tiling in lab.pick(others, others[:1])}
    ways[".xla"] = None
    for suffix, tiling in ways.items():
        id = f"tilings.{product.name}{suffix}.{rows}"
        with lab.record.attempt(id):
            xla: Any = OP.implementations["xla"].function
            launch = xla if tiling is None else partial(kernel, tiling=tiling)
            program = jax.jit(chain(product, launch))
            s = seconds_each(partial(program, every), calls=lab.pick(10, 1)) / calls
            limit = DataSheet.of(lab).us(product.bytes)
            lab.record.measured(id, 1e6 * s, "us", limit=limit, tiling=str(tiling))
