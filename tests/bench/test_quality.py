"""What `bench quality` makes of two models' outcomes."""

from __future__ import annotations

import numpy as np
import pytest

from bench.quality import TEXT, Outcome, compared


def test_figures_of_a_row():
    reference = Outcome(2.0, np.arange(10), np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), 8_000_000)
    best = np.arange(10)
    best[3] = 99
    # The first answer is the same; the second differs in its third token, then meets again.
    other = Outcome(2.1, best, np.array([[1, 2, 3, 4], [5, 6, 0, 8]]), 4_000_000)
    row = compared(other, reference)
    assert row["perplexity_ratio"] == pytest.approx(np.exp(0.1))
    assert row["same_next_token"] == 0.9
    assert row["same_answer"] == (4 + 2) / 8
    assert row["weights_mb"] == 4
    assert compared(reference, reference)["same_answer"] == 1


def test_the_text_is_long_enough_for_the_default_windows():
    assert len(TEXT.read_text().split()) > 1500
