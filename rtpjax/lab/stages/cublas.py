"""cuBLAS by way of torch: the products of a layer in a CUDA graph, to hold our tilings against."""

from __future__ import annotations

from typing import Any

import torch  # pyright: ignore[reportMissingImports]

from rtpjax.lab.products import Product, num_calls, products_of
from rtpjax.lab.stage import Lab
from rtpjax.lab.stages.peer import seconds_of
from rtpjax.lab.steps import ROWS, model_config


def run(lab: Lab) -> None:
    if not lab.is_small and not torch.cuda.is_available():
        lab.record.failed("cublas", f"torch {torch.__version__} finds no GPU")
        return
    model = model_config(lab)
    device = "cpu" if lab.is_small else "cuda"
    with torch.inference_mode():
        for product in products_of(model).values():
            for rows in lab.pick(ROWS, (1, 2)):
                with lab.record.attempt(f"cublas.{product.name}.{rows}"):
                    _measure(lab, product, rows, device)


def _measure(lab: Lab, product: Product, rows: int, device: str) -> None:
    calls = num_calls(product, is_small=lab.is_small)
    shape = sum(product.outputs), product.inputs
    weights = [torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(calls)]
    x = torch.randn(rows, product.inputs, device=device, dtype=torch.bfloat16)

    def every() -> Any:
        return [torch.nn.functional.linear(x, weight) for weight in weights]

    every()
    call = every
    if not lab.is_small:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            every()
        call = graph.replay
    s = seconds_of(lab, call, calls=lab.pick(10, 1)) / calls
    lab.record.measured(f"cublas.{product.name}.{rows}", 1e6 * s, "us")
