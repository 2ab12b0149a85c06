"""Which shapes of real models the quick tests take, and how a result is judged."""

from __future__ import annotations

import jax

from pallas_kernels.cases import worst
from pallas_kernels.paged_tiles import Operands, Scores
from pallas_kernels.shapes import ATTENTION_SHAPES

# One shape of each head_dim, format and option; the long sweep has them all.
DISTINCT = (
    "SmolLM2-135M",
    "Llama-3.1-8B",
    "Llama-3.1-8B int8 cache",
    "Llama-3.1-8B fp8 cache",
    "Llama-3.1-8B float16",
    "Gemma-2-2B",
    "phi-2",
    "Phi-3-mini",
    "gpt-oss-20b",
)
DISTINCT_SHAPES = [shape for shape in ATTENTION_SHAPES if shape.name in DISTINCT]
assert len(DISTINCT_SHAPES) == len(DISTINCT)


def assert_matches(got: jax.Array, operands: Operands, scores: Scores) -> None:
    """Compares the tokens that rows have with what the twin computes."""
    error = worst(got, operands, scores)
    assert error <= 1, f"{error:.3g} times the tolerance"
