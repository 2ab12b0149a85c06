import random
from itertools import islice, pairwise
from statistics import fmean, median, stdev

import pytest

from bench.workload import (
    SHAREGPT_MEAN_INPUT_LEN,
    SHAREGPT_MEAN_OUTPUT_LEN,
    Workload,
    draw_lognormal,
    poisson_arrivals,
)


def test_poisson_arrivals():
    arrivals = [0.0, *islice(poisson_arrivals(rate=5.0, seed=1), 20_000)]
    gaps = [after - before for before, after in pairwise(arrivals)]
    # Exponential gaps: the standard deviation equals the mean, and 1 / e of them exceed it.
    assert fmean(gaps) == pytest.approx(0.2, rel=0.03)
    assert stdev(gaps) == pytest.approx(0.2, rel=0.03)
    assert sum(gap > 0.2 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.015)


def test_same_seed_same_requests():
    workload = Workload(lengths="sharegpt")
    assert workload.requests(5, seed=3) == workload.requests(5, seed=3)
    assert workload.requests(5, seed=3) != workload.requests(5, seed=4)


def test_fixed_lengths_are_exact():
    for body in Workload(input_len=33, output_len=9).requests(3, seed=0):
        assert len(body["prompt"]) == 33 and body["max_tokens"] == 9
        assert "ignore_eos" not in body and body["temperature"] == 0.0
    (body,) = Workload(endpoint="chat", input_len=12, ignore_eos=True).requests(1, seed=0)
    assert len(body["messages"][0]["content"].split()) == 12
    assert body["ignore_eos"] is True


def test_sharegpt_lengths_have_the_papers_means():
    workload = Workload(lengths="sharegpt", max_input_len=10**6, max_output_len=10**6)
    bodies = workload.requests(10_000, seed=0)
    input_lens = [len(body["prompt"]) for body in bodies]
    output_lens = [body["max_tokens"] for body in bodies]
    assert fmean(input_lens) == pytest.approx(SHAREGPT_MEAN_INPUT_LEN, rel=0.05)
    assert fmean(output_lens) == pytest.approx(SHAREGPT_MEAN_OUTPUT_LEN, rel=0.05)
    assert median(input_lens) == pytest.approx(0.607 * SHAREGPT_MEAN_INPUT_LEN, rel=0.05)


def test_drawn_lengths_are_cut():
    bodies = Workload(lengths="sharegpt", max_input_len=64, max_output_len=32).requests(200, seed=0)
    assert max(len(body["prompt"]) for body in bodies) == 64
    assert max(body["max_tokens"] for body in bodies) == 32
    rng = random.Random(0)
    assert min(draw_lognormal(rng, 1.0, 2.0) for _ in range(100)) == 1
