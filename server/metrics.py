"""What /metrics tells Prometheus: latencies seen by callers, and the engine's own numbers.

Many of them are there twice: under our names, and under vLLM's (`_VLLM`) with the model's name as a
label, which dashboards, KEDA and the Gateway API's inference extension look for.
"""

from __future__ import annotations

import asyncio
import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from rtpjax.engine.request import EngineStats, RequestOutput
from server.connection import Limits

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_LAG_EVERY_S = 0.25
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)


class Metrics:
    """The counters of one server, in a registry of their own.

    Attributes:
        token_gaps: Times between outputs of a sequence, by token.
    """

    def __init__(self, stats: Callable[[], EngineStats], limits: Limits, model_name: str):
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(stats))
        self.token_gaps = _Gaps("rtpjax_inter_token_seconds", "Time between two tokens")
        self.registry.register(self.token_gaps)
        self._vllm = CollectorRegistry()
        self._vllm.register(_Renamed(self.registry, model_name))
        build = Gauge(
            "rtpjax_build_info",
            "1; its labels say what runs",
            ["version", "python", "model_name"],
            registry=self.registry,
        )
        build.labels(version("rtpjax"), platform.python_version(), model_name).set(1)
        self.http_requests = Counter(
            "rtpjax_http_requests",
            "Requests that have been answered, by route and status (499: the client left)",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.refused = Counter(
            "rtpjax_refused",
            "Requests that ended with an error, by its code",
            ["status", "code"],
            registry=self.registry,
        )
        self.prepare = Histogram(
            "rtpjax_prepare_seconds",
            "From a whole body to the engine: checked, rendered, encoded; waiting included",
            ["lane"],
            buckets=_SHORT_SECONDS,
            registry=self.registry,
        )
        self.queue = self._histogram("queue", "In the engine's queue", _SHORT_SECONDS)
        self.prompt_tokens = self._tokens("request_prompt", "Length of a prompt")
        self.output_tokens = self._tokens("request_generation", "Length of an answer")
        self.loop_lag = self._histogram(
            "event_loop_lag",
            "How late the event loop is, looked at 4 times a second",
            _SHORT_SECONDS,
        )
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

    def _tokens(self, name: str, text: str) -> Histogram:
        name = f"rtpjax_{name}_tokens"
        return Histogram(name, text, buckets=_TOKENS, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"rtpjax_{name}_seconds", text, buckets=buckets, registry=self.registry)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry) + generate_latest(self._vllm)

    async def watch_loop(self) -> None:
        """Measures how late the event loop is, until it is cancelled."""
        while True:
            due_s = time.monotonic() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self.loop_lag.observe(max(0.0, time.monotonic() - due_s))


class RequestTimer:
    """Follows one sequence and records its times when it ends."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._start_s = time.monotonic()
        self._first_s: float | None = None
        self._last_s = 0.0
        self._num_tokens = 0
        self._num_prompt_tokens = 0
        self._is_done = False

    def see(self, output: RequestOutput) -> None:
        """Counts one output of the engine."""
        now_s, num_new = time.monotonic(), output.num_output_tokens - self._num_tokens
        if self._first_s is None and output.token_ids:
            self._first_s = now_s
            self._num_prompt_tokens = output.num_prompt_tokens
            self._metrics.ttft.observe(now_s - self._start_s)
            self._metrics.queue.observe(output.wait_s)
        elif num_new > 0:
            self._metrics.token_gaps.add((now_s - self._last_s) / num_new, num_new)
        self._last_s, self._num_tokens = now_s, output.num_output_tokens
        if output.finish_reason is not None:
            self.finish(output.finish_reason)

    def finish(self, reason: str) -> None:
        """Records the end, once; later calls change nothing."""
        if self._is_done:
            return
        self._is_done = True
        now_s = time.monotonic()
        self._metrics.requests.labels(reason).inc()
        if self._first_s is not None:
            self._metrics.prompt_tokens.observe(self._num_prompt_tokens)
            self._metrics.output_tokens.observe(self._num_tokens)
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


class _Gaps(Collector):
    """A histogram that each token adds to: the client library's takes ten times as long."""

    def __init__(self, name: str, text: str):
        self._name, self._text = name, text
        self._counts = [0] * (len(_TOKEN_SECONDS) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float, number: int) -> None:
        """Counts gaps of equal length."""
        self._counts[bisect_left(_TOKEN_SECONDS, seconds)] += number
        self._sum_s += seconds * number

    def collect(self) -> Iterator[Metric]:
        total, buckets = 0, []
        for bound, count in zip((*map(str, _TOKEN_SECONDS), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum_s)


# Our names -> vLLM's.
_VLLM = {
    "rtpjax_running": "vllm:num_requests_running",
    "rtpjax_waiting": "vllm:num_requests_waiting",
    "rtpjax_page_usage_ratio": "vllm:kv_cache_usage_perc",
    "rtpjax_prefix_cache_queries_tokens": "vllm:prefix_cache_queries",
    "rtpjax_prefix_cache_hits_tokens": "vllm:prefix_cache_hits",
    "rtpjax_preemptions": "vllm:num_preemptions",
    "rtpjax_prompt_tokens": "vllm:prompt_tokens",
    "rtpjax_generation_tokens": "vllm:generation_tokens",
    "rtpjax_requests": "vllm:request_success",
    "rtpjax_ttft_seconds": "vllm:time_to_first_token_seconds",
    "rtpjax_inter_token_seconds": "vllm:inter_token_latency_seconds",
    "rtpjax_tpot_seconds": "vllm:request_time_per_output_token_seconds",
    "rtpjax_e2e_latency_seconds": "vllm:e2e_request_latency_seconds",
    "rtpjax_queue_seconds": "vllm:request_queue_time_seconds",
    "rtpjax_request_prompt_tokens": "vllm:request_prompt_tokens",
    "rtpjax_request_generation_tokens": "vllm:request_generation_tokens",
}
_VLLM_LABELS = {"finish_reason": "finished_reason"}


class _Renamed(Collector):
    """The same numbers under vLLM's names."""

    def __init__(self, registry: CollectorRegistry, model_name: str):
        self._registry = registry
        self._model_name = model_name

    def describe(self) -> Iterator[Metric]:
        yield from ()

    def collect(self) -> Iterator[Metric]:
        for ours in self._registry.collect():
            name = _VLLM.get(ours.name)
            if name is None:
                continue
            theirs = Metric(name, ours.documentation, ours.type)
            for sample in ours.samples:
                labels = {_VLLM_LABELS.get(k, k): v for k, v in sample.labels.items()}
                labels = {"model_name": self._model_name, **labels}
                theirs.add_sample(sample.name.replace(ours.name, name), labels, sample.value)
            yield theirs


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
