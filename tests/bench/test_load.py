import asyncio
import time

import pytest

from bench.client import BenchClient
from bench.load import closed_loop, open_loop
from bench.stats import summarize
from bench.workload import Workload

WORKLOAD = Workload(input_len=20, output_len=6)


def run_closed(url: str, count: int, num_clients: int, workload: Workload = WORKLOAD):
    async def measure():
        async with BenchClient(url, timeout_s=5.0) as client:
            return await closed_loop(client, workload.requests(count, 0), num_clients)

    return asyncio.run(measure())


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_known_delays_are_measured(start_server, fake_server, endpoint):
    fake = fake_server(ttft_s=0.08, itl_s=0.03)
    workload = Workload(endpoint=endpoint, input_len=20, output_len=6)
    summary = summarize(run_closed(start_server(fake), 6, 2, workload))
    assert summary.num_errors == 0, summary.errors
    # A sleep is never short; a busy machine makes it long. A chat's opening role is no text.
    assert 0.079 <= summary.ttft_s.p50 <= 0.16
    assert 0.029 <= summary.tpot_s.p50 <= 0.06
    assert 0.029 <= summary.itl_s.p50 <= 0.06
    assert summary.itl_s.count == 6 * 5
    assert summary.num_output_tokens == 36 and summary.num_prompt_tokens == 42
    assert summary.e2e_s.p50 >= 0.08 + 5 * 0.03 - 0.001
    assert fake.bodies[0]["stream_options"] == {"include_usage": True}
    assert fake.bodies[0]["model"] == "fake"


def test_closed_loop_keeps_its_concurrency(start_server, fake_server):
    fake = fake_server(ttft_s=0.02, itl_s=0.001)
    records = run_closed(start_server(fake), 12, 3)
    assert len(records) == 12 and fake.max_in_flight == 3


def test_open_loop_does_not_wait_for_answers(start_server, fake_server):
    fake = fake_server(ttft_s=0.5, itl_s=0.0)
    url = start_server(fake)

    async def measure():
        async with BenchClient(url, timeout_s=5.0) as client:
            await client.resolve_model()
            return await open_loop(client, WORKLOAD.requests(20, 0), rate=100.0, seed=2)

    start_s = time.perf_counter()
    records = asyncio.run(measure())
    assert time.perf_counter() - start_s < 2.0  # one after the other: 10 s
    assert fake.max_in_flight > 10
    starts = [record.start_s for record in records]
    assert starts == sorted(starts) and starts[-1] - starts[0] == pytest.approx(0.2, abs=0.15)


def test_failures_are_counted_with_their_reasons(start_server, fake_server):
    fake = fake_server(
        ttft_s=0.0, itl_s=0.0, failures=["status", "cut", None, "error", "no_usage", "status"]
    )
    summary = summarize(run_closed(start_server(fake), 8, 1))
    assert (summary.num_requests, summary.num_errors) == (8, 5)
    reasons = " | ".join(f"{count}x {reason}" for reason, count in summary.errors.items())
    assert "2x StreamError: HTTP 429" in reasons and "too many" in reasons
    assert "1x StreamError: the stream ended without [DONE]" in reasons
    assert "engine failed" in reasons and "has no usage" in reasons
    assert summary.num_output_tokens == 3 * 6
    assert summary.ttft_s.count == 3


def test_a_request_over_its_time_limit_has_failed(start_server, fake_server):
    url = start_server(fake_server(ttft_s=2.0))

    async def measure():
        async with BenchClient(url, model="fake", timeout_s=0.1) as client:
            return await client.run(WORKLOAD.requests(1, 0)[0])

    record = asyncio.run(measure())
    assert record.error is not None and record.error.startswith("TimeoutError")
    assert record.end_s - record.start_s < 1.0
