"""The products of a layer at few and at 64 rows: our tiles, those they replaced, others, XLA's."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax

from pallas_kernels.row_matmul import OP, TILINGS_AT_64_ROWS, Tiling
from rtpjax.lab.products import (
    Product,
    around_of,
    compile_chain,
    num_calls,
    operands_of,
    products_of,
)
from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import ROWS, DataSheet, model_config
from rtpjax.lab.timing import seconds_each

_NARROW = 32


def run(lab: Lab) -> None:
    products = products_of(model_config(lab))
    cases = [
        (products[name], rows)
        for name in lab.pick(tuple(products), ("gate_up", "down"))
        for rows in lab.pick(ROWS, (64,))
    ]
    with ThreadPoolExecutor(lab.pick(12, 2)) as pool:
        programs = {case: _programs(lab, *case, pool) for case in cases}
    for product, rows in cases:
        every = operands_of(product, rows, num_calls(product, is_small=lab.is_small))
        for way, (tiling, program) in programs[product, rows].items():
            id = f"tilings.{product.name}{way}.{rows}"
            with lab.record.attempt(id):
                s = seconds_each(partial(program.result(), every), calls=lab.pick(10, 1))
                limit = DataSheet.of(lab).us(product.bytes)
                lab.record.measured(id, 1e6 * s / len(every), "us", limit=limit, tiling=str(tiling))


def _programs(
    lab: Lab, product: Product, rows: int, pool: ThreadPoolExecutor
) -> dict[str, tuple[Tiling | None, Future[Any]]]:
    """By name: a tiling, or None for XLA's product, and the program."""
    shapes = jax.eval_shape(partial(operands_of, product, rows, 1))[0]
    around = around_of(product)
    now = Tiling.of(shapes, around)
    ways: dict[str, Tiling | None] = {"": now}
    if rows > _NARROW:
        before = Tiling.of(shapes, around, widest=_NARROW)
        ways[".before"] = before
        others = [t for t in TILINGS_AT_64_ROWS if t not in (now, before)]
        ways |= {f".{tiling}": tiling for tiling in lab.pick(others, others[:1])}
    ways[".xla"] = None
    kernel: Any = OP.implementations["pallas"].function
    if lab.is_small:
        kernel = partial(kernel, interpret=True)
    xla: Any = OP.implementations["xla"].function

    def compiled(tiling: Tiling | None) -> Future[Any]:
        launch = xla if tiling is None else partial(kernel, tiling=tiling)
        return pool.submit(compile_chain, product, rows, launch, is_small=lab.is_small)

    return {way: (tiling, compiled(tiling)) for way, tiling in ways.items()}
