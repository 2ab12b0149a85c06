"""The engine as the server's event loop sees it.

    event loop                                          the engine's thread or process
    generate() ── request, Abort ──► Link.send ──────►  EngineLoop: add, abort, step, step, ...
    stream of the request ◄── Report ───────────────────┘

Only records cross (rtpjax.engine.border), one Report a step. Where the engine cannot go on all
requests end, `failure` says why, and whoever runs the server should end the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from rtpjax.engine.admission import check_request
from rtpjax.engine.border import (
    Abort,
    Ended,
    Failed,
    FromEngine,
    Leave,
    Loaded,
    LoadFailed,
    Report,
    ToEngine,
)
from rtpjax.engine.failures import failed
from rtpjax.engine.faults import report, told
from rtpjax.engine.link import Link
from rtpjax.engine.request import EngineStats, GenerationRequest, RequestOutput
from rtpjax.engine.stream import Stream
from rtpjax.errors import DrainingError, EngineError, QueueFullError, RequestError, RtpjaxError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

_CLOSE_S = 5.0  # for an engine that may hang


class AsyncLLMEngine:
    """What the server sees of the engine. For one event loop.

    Args:
        link: The way to the engine, not opened yet.
        tokenizer: The model's tokenizer.
        model_name: What the API calls the model.

    Attributes:
        created: Unix time at which it was made.
        is_draining: No new requests are taken.
    """

    def __init__(self, link: Link, tokenizer: PreTrainedTokenizerFast, model_name: str):
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.created = int(time.time())
        self.is_draining = False
        self._link = link
        self._loaded: Loaded | None = None
        self._loading: asyncio.Future[Loaded] | None = None
        self._failure: str | None = None
        self._has_ended = False
        self._stats = EngineStats()
        self._num_sent = 0
        self._num_taken = 0
        self._outgoing: list[ToEngine] = []
        self._streams: dict[str, Stream] = {}

    @property
    def failure(self) -> str | None:
        """Why the engine cannot go on, or None."""
        return self._failure or self._link.failure

    @property
    def is_ready(self) -> bool:
        """Whether generate takes requests: loaded, compiled, not draining, and somebody answers."""
        is_there = self._loaded is not None and self._link.is_alive
        return is_there and not self.is_draining and self.failure is None

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together; 0 until the engine is loaded."""
        return 0 if self._loaded is None else self._loaded.max_model_len

    @property
    def end_token_ids(self) -> frozenset[int]:
        """The model's own end tokens; none until the engine is loaded."""
        return frozenset() if self._loaded is None else self._loaded.end_token_ids

    async def start(self) -> None:
        """Has the engine loaded; ready when this returns.

        Raises:
            Exception: What went wrong while it was loaded.
        """
        self._event_loop = asyncio.get_running_loop()
        self._loading = self._event_loop.create_future()
        await self._link.open(self._receive)
        self._loaded = await self._loading

    async def stop(self) -> None:
        """Ends the engine. Requests that still run end with an error."""
        if self._loading is not None:
            self._flush()
            await self._link.close(_CLOSE_S if self.failure else None)
            self._end_all()

    async def drain(self, timeout_s: float) -> None:
        """Takes no new requests; waits until the running ones have ended, or the time is over."""
        self.is_draining = True
        deadline = time.monotonic() + timeout_s
        while self._streams and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        if self._streams:
            logger.warning(
                "Drain: %d requests did not end in %.0f s", len(self._streams), timeout_s
            )

    def stats(self) -> EngineStats:
        """A snapshot for metrics: that of the engine's last step."""
        return self._stats

    def generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput]:
        """Runs a request; closing the generator early aborts it and frees its pages.

        Outputs that come faster than they are read are joined.

        Raises:
            RequestError: At once, before anything is queued, when the request cannot be honoured.
                That its grammar cannot is told by its only output.
            DrainingError: The engine is not ready, or shutting down.
        """
        if self.is_draining:
            raise DrainingError("The server is shutting down.", code="shutting_down")
        if self._loaded is None:
            raise DrainingError("The server is still loading the model.", code="not_ready")
        if not self.is_ready:
            reason = self.failure or "Restart the server."
            raise DrainingError(f"The engine has stopped: {reason}", code="stopped")
        self._check(self._loaded, request)
        return self._outputs(self._loaded, request)

    def _check(self, loaded: Loaded, request: GenerationRequest) -> None:
        """Refuses what the engine does not take."""
        try:
            check_request(request, loaded.max_model_len, loaded.num_tokens, loaded.end_token_ids)
        except RtpjaxError:
            raise
        except BaseException as error:
            error_id = report(f"Checking request {request.request_id}", error)
            raise EngineError(told(error_id)) from error
        self._check_queue(loaded)
        if request.request_id in self._streams:
            raise RequestError(
                f"request_id: {request.request_id!r} is in use; give each request its own.",
                param="request_id",
            )

    def _check_queue(self, loaded: Loaded) -> None:
        """Refuses what would wait behind too many, those on their way to the engine included."""
        num_arriving = self._num_sent - self._num_taken
        if self._stats.num_waiting + num_arriving >= loaded.max_num_waiting:
            raise QueueFullError(
                f"{loaded.max_num_waiting} requests are waiting already. Try again later.",
                code="queue_full",
            )

    async def _outputs(
        self, loaded: Loaded, request: GenerationRequest
    ) -> AsyncGenerator[RequestOutput]:
        request_id = request.request_id
        self._check_queue(loaded)  # others may have come since generate() looked
        assert request_id not in self._streams, f"request id {request_id} is in use"
        self._streams[request_id] = stream = Stream()
        is_finished = False
        try:
            self._num_sent += 1
            self._send(request)
            if self._has_ended:
                self._end_all()
            while not is_finished:
                for output in await stream.take():
                    is_finished = output.finish_reason is not None
                    yield output
        finally:
            del self._streams[request_id]
            if not is_finished:
                self._send(Abort(request_id))

    def _send(self, record: ToEngine) -> None:
        """Sends what there is at the end of this round of the event loop, in one piece."""
        if not self._outgoing:
            self._event_loop.call_soon(self._flush)
        self._outgoing.append(record)

    def _flush(self) -> None:
        records, self._outgoing = self._outgoing, []
        if records and not self._has_ended:
            self._link.send(records)

    def _receive(self, record: FromEngine) -> None:
        assert self._loading is not None
        match record:
            case Report():
                self._stats, self._num_taken = record.stats, record.num_taken
                self._failure = self._failure or record.failure
                self._deliver(record)
            case Loaded():
                self._stats = record.stats
                self._loading.set_result(record)
            case LoadFailed(error):
                self._loading.set_exception(error)
            case Failed(reason):
                self._failure = self._failure or reason
                self._end_all()
            case Leave():
                # Once it drains, nobody may listen to the signal any more, and it would end the
                # process.
                if not self.is_draining:
                    os.kill(os.getpid(), signal.SIGTERM)
            case Ended(failure):
                self._failure = self._failure or failure
                if not self._loading.done():
                    self._loading.set_exception(EngineError(failure or "The engine has ended."))
                self._end_all()

    def _deliver(self, report: Report) -> None:
        streams = self._streams
        columns = zip(report.request_ids, report.token_ids, report.texts, strict=True)
        for request_id, token_ids, text in columns:
            if request_id in streams:
                streams[request_id].add_tokens(token_ids, text)
        for output in report.outputs:
            if output.request_id in streams:
                streams[output.request_id].add(output)

    def _end_all(self) -> None:
        """The engine has ended: so do all requests, each after what it was told before."""
        self._has_ended = True
        reason = f": {self.failure}" if self.failure else "."
        error = EngineError(f"The engine stopped before the answer was complete{reason}")
        for request_id, stream in self._streams.items():
            stream.add(failed(request_id, error))
