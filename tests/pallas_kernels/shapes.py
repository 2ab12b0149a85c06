"""How a kernel's result is judged."""

from __future__ import annotations

import jax

from pallas_kernels.cases import worst
from pallas_kernels.paged_tiles import Operands, Scores


def assert_matches(got: jax.Array, operands: Operands, scores: Scores) -> None:
    """Compares the tokens that rows have with what the twin computes."""
    error = worst(got, operands, scores)
    assert error <= 1, f"{error:.3g} times the tolerance"
