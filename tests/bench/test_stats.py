import numpy as np
import pytest

from bench.stats import Distribution, RequestRecord, summarize, throughput_over_time

# Two good requests and a failed one; seconds.
EARLY = RequestRecord(
    start_s=10.0,
    end_s=12.0,
    event_times_s=(10.5, 10.7, 11.0, 11.5),
    num_prompt_tokens=100,
    num_output_tokens=5,
    num_cached_tokens=64,
)
LATE = RequestRecord(
    start_s=11.0, end_s=14.0, event_times_s=(13.0,), num_prompt_tokens=50, num_output_tokens=1
)
FAILED = RequestRecord(start_s=9.0, end_s=9.5, event_times_s=(9.2, 9.3), error="HTTP 429")


def test_one_request():
    assert EARLY.ttft_s == 0.5
    assert EARLY.tpot_s == pytest.approx((11.5 - 10.5) / 4)
    assert EARLY.itls_s == pytest.approx([0.2, 0.3, 0.5])
    assert LATE.tpot_s is None and LATE.itls_s == []
    assert RequestRecord(0.0, 1.0).ttft_s is None


def test_distribution_by_hand():
    # Rank of p90 among 0..10 is 9; between 1 and 2 the median is 1.5.
    assert Distribution.of(range(11)) == Distribution(11, 5.0, 5.0, 9.0, pytest.approx(9.9))
    assert Distribution.of([2.0, None, 1.0]).p50 == 1.5
    assert Distribution.of([]) == Distribution(0, 0.0, 0.0, 0.0, 0.0)


def test_summary_leaves_failed_requests_out_of_the_figures():
    summary = summarize([LATE, FAILED, EARLY])
    assert (summary.num_requests, summary.num_errors) == (3, 1)
    assert summary.errors == {"HTTP 429": 1}
    assert summary.duration_s == 5.0  # the failed request was part of the run
    assert (summary.num_prompt_tokens, summary.num_cached_tokens) == (150, 64)
    assert summary.request_throughput == 2 / 5
    assert summary.output_throughput == 6 / 5
    assert summary.tokens_per_event == 6 / 5
    assert summary.ttft_s.count == 2 and summary.ttft_s.mean == 1.25
    assert summary.tpot_s.count == 1
    assert summary.e2e_s.p50 == 2.5


def test_summary_of_nothing_and_of_failures_only():
    assert summarize([]).output_throughput == 0.0
    summary = summarize([FAILED])
    assert summary.num_errors == 1 and summary.ttft_s.count == 0


def test_throughput_over_time_keeps_every_token():
    edges, rates = throughput_over_time([EARLY, LATE], bin_s=1.0)
    # From 10.0 on: 2 events of 5/4 tokens, 2 more, and one token exactly at the end.
    assert edges.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert rates.tolist() == [2.5, 2.5, 1.0]
    edges, rates = throughput_over_time([EARLY], bin_s=1.0)
    assert edges.tolist() == [0.0, 1.0, 1.5]
    assert float(np.sum(rates * np.diff(edges))) == pytest.approx(5.0)
    assert rates[1] == pytest.approx(2.5 / 0.5)
    assert len(throughput_over_time([FAILED])[1]) == 0
