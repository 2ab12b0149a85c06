"""Attention of one long prompt: our kernels, and cuDNN's as a measuring stick."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax

from pallas_kernels import paged_attention
from rtpjax.lab.stage import Lab
from rtpjax.lab.stages.decode_attention import operands_of
from rtpjax.lab.steps import DataSheet, random_array
from rtpjax.lab.timing import seconds_each

Attend = Callable[[], jax.Array]


def run(lab: Lab) -> None:
    """The Hopper kernel comes last: a fault of it loses the GPU for this process."""
    tokens = lab.pick(8192, 64)
    operands, _ = operands_of(lab, [tokens], tokens)
    _, N, H = operands.q.shape
    K = operands.k_pages.shape[2]
    flops = 2 * N * H * tokens * (tokens + 1)
    q, k, v = (random_array(name, (1, tokens, n, H)) for name, n in (("q", N), ("k", K), ("v", K)))

    def ours(name: str) -> Attend:
        function = paged_attention.OP.implementations[name].function
        if lab.is_small and name == "pallas":
            function = partial(function, interpret=True)
        call = jax.jit(lambda o: function(*o[:6], scale=H**-0.5))
        return partial(call, operands)

    def library(name: Literal["xla", "cudnn"]) -> Attend:
        call = partial(jax.nn.dot_product_attention, is_causal=True, implementation=name)
        # JAX's own code for the CPU needs it where promotion is strict.
        with jax.numpy_dtype_promotion("standard"):
            return partial(jax.jit(call).lower(q, k, v).compile(), q, k, v)

    ways: dict[str, Callable[[], Attend]] = {
        "pallas": partial(ours, "pallas"),
        "cudnn": partial(library, "xla" if lab.is_small else "cudnn"),
        "mosaic": partial(ours, "xla" if lab.is_small else "mosaic"),
    }
    for name, make in ways.items():
        id = f"prefill_attention.{name}"
        with lab.record.attempt(id):
            s = seconds_each(make(), calls=lab.pick(10, 1))
            peak = DataSheet.of(lab).tflop_s()
            lab.record.measured(id, flops / s / 1e12, "TFLOP/s", limit=peak, ms=round(1e3 * s, 3))
