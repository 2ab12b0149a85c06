"""What was measured of each request, and the figures made from it. Times are in seconds.

ttft: from sending to the first text.
tpot: time per output token after the first; one value a request.
itl: the gaps between the events of a stream; a server may put several tokens into one event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as its client saw it; times are of one clock.

    Attributes:
        start_s: When it was sent; in an open loop when it was due, so a late client counts too.
        end_s: When the stream ended or failed.
        event_times_s: When each event with text came.
        num_prompt_tokens, num_output_tokens, num_cached_tokens: As the server counted them.
        error: Why it failed, or None.
    """

    start_s: float
    end_s: float
    event_times_s: tuple[float, ...] = ()
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        return self.event_times_s[0] - self.start_s if self.event_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """None for fewer than two tokens: there is no time between them."""
        if self.num_output_tokens < 2 or not self.event_times_s:
            return None
        return (self.event_times_s[-1] - self.event_times_s[0]) / (self.num_output_tokens - 1)

    @property
    def itls_s(self) -> list[float]:
        times = self.event_times_s
        return [after - before for before, after in pairwise(times)]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Count, mean and percentiles (linear interpolation) of a sample; all 0 for an empty one."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Distribution:
        """Values that are None (nothing to measure) are left out."""
        sample = [value for value in values if value is not None]
        if not sample:
            return cls(0, 0.0, 0.0, 0.0, 0.0)
        p50, p90, p99 = (float(value) for value in np.percentile(sample, (50, 90, 99)))
        return cls(len(sample), float(np.mean(sample)), p50, p90, p99)


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run. Failed requests count as errors and in nothing else.

    Attributes:
        duration_s: From the first request's start to the last one's end.
        tokens_per_event: Above 1, itl describes events and not tokens.
        errors: How often each reason occurred.
    """

    num_requests: int
    num_errors: int
    duration_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    request_throughput: float
    output_throughput: float
    tokens_per_event: float
    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution
    errors: dict[str, int]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def summarize(records: Sequence[RequestRecord]) -> Summary:
    """Returns the figures of a run; `records` holds every request of it, failed ones too."""
    done = [record for record in records if record.error is None]
    duration_s = 0.0
    if records:
        duration_s = max(r.end_s for r in records) - min(r.start_s for r in records)
    num_output_tokens = sum(record.num_output_tokens for record in done)
    num_events = sum(len(record.event_times_s) for record in done)
    return Summary(
        num_requests=len(records),
        num_errors=len(records) - len(done),
        duration_s=duration_s,
        num_prompt_tokens=sum(record.num_prompt_tokens for record in done),
        num_output_tokens=num_output_tokens,
        num_cached_tokens=sum(record.num_cached_tokens for record in done),
        request_throughput=ratio(len(done), duration_s),
        output_throughput=ratio(num_output_tokens, duration_s),
        tokens_per_event=ratio(num_output_tokens, num_events),
        ttft_s=Distribution.of(record.ttft_s for record in done),
        tpot_s=Distribution.of(record.tpot_s for record in done),
        itl_s=Distribution.of(itl for record in done for itl in record.itls_s),
        e2e_s=Distribution.of(record.end_s - record.start_s for record in done),
        errors=dict(Counter(r.error for r in records if r.error is not None).most_common()),
    )


def ratio(numerator: float, denominator: float) -> float:
    """0 where there is nothing to divide by."""
    return numerator / denominator if denominator else 0.0


def throughput_over_time(
    records: Sequence[RequestRecord], bin_s: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns output tokens per second over the run.

    A request's tokens are spread evenly over its events. The last bin is shorter than the others
    and is divided by its own length.

    Returns:
        Bin edges in seconds from the first request's start [bins + 1], tokens/s in each bin [bins].
    """
    done = [record for record in records if record.error is None and record.event_times_s]
    if not done:
        return np.zeros(1), np.zeros(0)
    origin_s = min(record.start_s for record in records)
    times = np.concatenate([record.event_times_s for record in done]) - origin_s
    weights = np.concatenate(
        [np.full(len(r.event_times_s), r.num_output_tokens / len(r.event_times_s)) for r in done]
    )
    end_s = max(float(times.max()), 1e-9)
    edges = np.append(np.arange(0.0, end_s, bin_s), end_s)
    tokens, _ = np.histogram(times, edges, weights=weights)
    return edges, tokens / np.diff(edges)
