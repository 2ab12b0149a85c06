"""What /metrics tells Prometheus: latencies seen by callers, and the engine's own numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rtpjax.engine.request import EngineStats, RequestOutput
from server.connection import Limits

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self, stats: Callable[[], EngineStats], limits: Limits):
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(stats))
        connections = self._gauge("http_connections", "Connections of callers")
        connections.set_function(lambda: limits.num_connections)
        bodies = self._gauge("http_body_bytes", "Bodies of the requests that are worked on")
        bodies.set_function(lambda: limits.held_body_bytes)
        self.requests = Counter(
            "rtpjax_requests",
            "Finished sequences, by how they ended",
            ["finish_reason"],
            registry=self.registry,
        )
        self.ttft = self._histogram("ttft", "Arrival to first token", _SECONDS)
        self.tpot = self._histogram("tpot", "Mean time per token after the first", _TOKEN_SECONDS)
        self.latency = self._histogram("e2e_latency", "Arrival to last token", _SECONDS)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"rtpjax_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"rtpjax_{name}_seconds", text, buckets=buckets, registry=self.registry)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)


class RequestTimer:
    """Follows one sequence and records its times when it ends."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._start_s = time.monotonic()
        self._first_s: float | None = None
        self._num_tokens = 0
        self._is_done = False

    def see(self, output: RequestOutput) -> None:
        """Counts one output of the engine."""
        self._num_tokens = output.num_output_tokens
        if self._first_s is None and output.token_ids:
            self._first_s = time.monotonic()
            self._metrics.ttft.observe(self._first_s - self._start_s)
        if output.finish_reason is not None:
            self.finish(output.finish_reason)

    def finish(self, reason: str) -> None:
        """Records the end, once; later calls change nothing."""
        if self._is_done:
            return
        self._is_done = True
        now_s = time.monotonic()
        self._metrics.requests.labels(reason).inc()
        self._metrics.latency.observe(now_s - self._start_s)
        if self._first_s is not None and self._num_tokens > 1:
            self._metrics.tpot.observe((now_s - self._first_s) / (self._num_tokens - 1))


# Name, field of EngineStats, help.
_GAUGES = (
    ("rtpjax_running", "num_running", "Requests in the running batch"),
    ("rtpjax_waiting", "num_waiting", "Requests in the queue"),
)
_COUNTERS = (
    ("rtpjax_steps", "num_steps", "Device steps"),
    ("rtpjax_prompt_tokens", "num_prompt_tokens", "Prompt tokens of accepted requests"),
    ("rtpjax_generation_tokens", "num_output_tokens", "Generated tokens"),
    ("rtpjax_prefix_cache_queries_tokens", "prefix_queried_tokens", "Tokens looked up"),
    ("rtpjax_prefix_cache_hits_tokens", "prefix_hit_tokens", "Tokens found in the prefix cache"),
    ("rtpjax_preemptions", "num_preemptions", "Requests that gave their pages back"),
    ("rtpjax_recompiles", "num_recompiles", "Programs compiled after the server was ready"),
    ("rtpjax_engine_host_seconds", "host_s", "Engine thread: all but waiting for the device"),
    ("rtpjax_engine_wait_seconds", "wait_s", "Engine thread: waiting for the device"),
)


def _drafts(stats: EngineStats, by_position: tuple[int, ...]) -> Iterator[Metric]:
    """Under vLLM's names, which its dashboards ask for."""
    name = "vllm:spec_decode_num"
    yield CounterMetricFamily(f"{name}_drafts", "Rows with drafts", value=stats.num_drafts)
    yield CounterMetricFamily(
        f"{name}_draft_tokens", "Tokens drafted", value=stats.num_draft_tokens
    )
    yield CounterMetricFamily(
        f"{name}_accepted_tokens", "Tokens drafted and sampled", value=sum(by_position)
    )
    each = CounterMetricFamily(
        f"{name}_accepted_tokens_per_pos", "The same, by place in the draft", labels=["position"]
    )
    for i, count in enumerate(by_position):
        each.add_metric([str(i)], count)
    yield each


class _EngineCollector(Collector):
    """Reads the engine's snapshot when Prometheus asks, so the engine counts nothing twice."""

    def __init__(self, stats: Callable[[], EngineStats]):
        self._stats = stats

    def describe(self) -> Iterator[Metric]:
        # Registering must not ask an engine that is still loading.
        yield from ()

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, field, text in _GAUGES:
            yield GaugeMetricFamily(name, text, value=getattr(stats, field))
        used = 1 - stats.num_free_pages / stats.num_pages if stats.num_pages else 0.0
        yield GaugeMetricFamily("rtpjax_page_usage_ratio", "Part of the pages in use", value=used)
        for name, field, text in _COUNTERS:
            yield CounterMetricFamily(name, text, value=getattr(stats, field))
        if stats.accepted_by_position is not None:
            yield from _drafts(stats, stats.accepted_by_position)
        # The event loop's thread is the one that answers the scrape.
        text = "Event loop thread: processor time"
        yield CounterMetricFamily("rtpjax_event_loop_cpu_seconds", text, value=time.thread_time())
