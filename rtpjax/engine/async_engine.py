"""The engine for an event loop: a thread runs the steps, messages cross between the two.

    event loop                                   engine thread
    generate() ── Add, Abort ──► inbox ──────►   add / abort, step, step, ...
    queue of the request ◄── outbox, call_soon_threadsafe ────────────┘

A message that fails ends its own request. Where the thread itself cannot go on, all requests end,
`failure` says why, and whoever runs the server should end the process.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

from transformers import PreTrainedTokenizerFast

from rtpjax.engine.constraint import Constraint
from rtpjax.engine.engine import LLMEngine
from rtpjax.engine.faults import report, told
from rtpjax.engine.grammar import TIME_LIMIT_S, result_of, too_slow
from rtpjax.engine.request import EngineStats, GenerationRequest, RequestOutput
from rtpjax.errors import (
    DrainingError,
    EngineError,
    RequestError,
    RequestTimeoutError,
    RtpjaxError,
)

logger = logging.getLogger(__name__)

# A request to add, with its place in its grammar if it has one, or the id of a request to abort.
_Message = tuple[GenerationRequest, Constraint | None] | str

_MAX_CALLS = 3  # of the event loop that fail, one after the other
_JOIN_S = 5.0  # for a thread that may hang


class AsyncLLMEngine:
    """What the server sees of the engine.

    Args:
        load: Makes the engine (loads weights, compiles); called by start in a thread of its own.
        tokenizer: The model's tokenizer.
        model_name: What the API calls the model.

    Attributes:
        created: Unix time at which it was made.
        is_draining: No new requests are taken.
        failure: Why the engine cannot go on, or None.
    """

    def __init__(
        self, load: Callable[[], LLMEngine], tokenizer: PreTrainedTokenizerFast, model_name: str
    ):
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.created = int(time.time())
        self.is_draining = False
        self.failure: str | None = None
        self._load = load
        self._engine: LLMEngine | None = None
        self._thread: threading.Thread | None = None
        self._inbox: deque[_Message] = deque()
        self._outbox: deque[RequestOutput] = deque()
        self._arriving: set[str] = set()  # ids of requests that the engine has not taken in
        self._is_stopping = False
        self._has_ended = False  # read and written in the event loop only
        self._queues: dict[str, asyncio.Queue[RequestOutput]] = {}

    @property
    def is_ready(self) -> bool:
        """Whether generate takes requests: loaded, compiled, not draining, and the thread runs."""
        alive = self._thread is not None and self._thread.is_alive()
        return alive and not self.is_draining and self.failure is None

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together; 0 until the engine is loaded."""
        return 0 if self._engine is None else self._engine.config.max_model_len

    @property
    def end_token_ids(self) -> frozenset[int]:
        """The model's own end tokens; none until the engine is loaded."""
        return frozenset() if self._engine is None else self._engine.end_token_ids

    async def start(self) -> None:
        """Loads the engine and starts its thread; ready when this returns."""
        self._loop = asyncio.get_running_loop()
        self._engine = await asyncio.to_thread(self._load)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread. Requests that still run end with an error."""
        self._is_stopping = True
        if self._thread is not None and self._engine is not None:
            self._engine.wake.set()
            # After a failure it may hang on a device; it is a daemon.
            await asyncio.to_thread(self._thread.join, _JOIN_S if self.failure else None)
            self._end_all()

    def fail(self, reason: str) -> None:
        """Ends all requests with an error and takes no new ones, though the thread may hang.

        Thread-safe. For failures that only the outside can see: a host of the mesh is gone.
        """
        self.failure = reason
        if self._thread is not None:
            self._call(self._end_all)

    async def drain(self, timeout_s: float) -> None:
        """Takes no new requests; waits until the running ones have ended, or the time is over."""
        self.is_draining = True
        deadline = time.monotonic() + timeout_s
        while self._queues and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        if self._queues:
            logger.warning("Drain: %d requests did not end in %.0f s", len(self._queues), timeout_s)

    def stats(self) -> EngineStats:
        """A snapshot for metrics."""
        return EngineStats() if self._engine is None else self._engine.stats()

    def generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput]:
        """Runs a request; closing the generator early aborts it and frees its pages.

        Raises:
            RequestError: At once, before anything is queued, when the request cannot be honoured. A
                grammar that cannot is told by the generator, also before anything is queued.
            DrainingError: The engine is not ready, or shutting down.
        """
        if self.is_draining:
            raise DrainingError("The server is shutting down.", code="shutting_down")
        if self._engine is None or self._thread is None:
            raise DrainingError("The server is still loading the model.", code="not_ready")
        if not self.is_ready:
            reason = self.failure or "Restart the server."
            raise DrainingError(f"The engine has stopped: {reason}", code="stopped")
        self._check(self._engine, request)
        return self._outputs(self._engine, request)

    def _check(self, engine: LLMEngine, request: GenerationRequest) -> None:
        """Refuses what the engine does not take."""
        try:
            engine.check(request, num_arriving=len(self._arriving))
            if request.request_id in self._queues:
                raise RequestError(
                    f"request_id: {request.request_id!r} is in use; give each request its own.",
                    param="request_id",
                )
        except RtpjaxError:
            raise
        except BaseException as error:
            error_id = report(f"Checking request {request.request_id}", error)
            if request is not engine.probe:
                self._check_probe(engine)
            raise EngineError(told(error_id)) from error

    def _check_probe(self, engine: LLMEngine) -> None:
        """Fails as a whole if the engine's own request does not pass the check either."""
        try:
            self._check(engine, engine.probe)
        except EngineError:
            self.fail("The engine cannot check requests any more; the server's log has the cause.")
        except RtpjaxError:
            pass  # a full queue, say

    async def _outputs(
        self, engine: LLMEngine, request: GenerationRequest
    ) -> AsyncGenerator[RequestOutput]:
        request_id = request.request_id
        # Others may have come since generate() looked.
        engine.check_queue(num_arriving=len(self._arriving))
        queue: asyncio.Queue[RequestOutput] = asyncio.Queue()
        assert request_id not in self._queues, f"request id {request_id} is in use"
        self._queues[request_id] = queue
        self._arriving.add(request_id)
        is_finished = False
        try:
            self._send(engine, (request, await self._constrain(engine, request)))
            if self._has_ended:
                self._end_all()
            while not is_finished:
                output = await queue.get()
                is_finished = output.finish_reason is not None
                yield output
        finally:
            del self._queues[request_id]
            self._arriving.discard(request_id)
            if not is_finished:
                self._send(engine, request_id)

    async def _constrain(self, engine: LLMEngine, request: GenerationRequest) -> Constraint | None:
        """Compiles the request's grammar in a thread of its own.

        Raises:
            RequestError: It cannot be compiled, or not in time.
            QueueFullError: Too many others are being compiled.
            EngineError: The compiler failed.
        """
        if not request.is_constrained:
            return None
        limit_s, is_own = TIME_LIMIT_S, False
        if request.timeout_s is not None:
            left_s = request.arrived_s + request.timeout_s - time.monotonic()
            limit_s, is_own = min((left_s, True), (limit_s, False))
        try:
            with engine.grammars.compiling(request.grammar, request.reasoning_limit) as shared:
                compiled = asyncio.wrap_future(shared)
                compiled.add_done_callback(lambda f: f.cancelled() or f.exception())  # seen here
                await asyncio.wait([compiled], timeout=max(limit_s, 0.0))
                if shared.done():
                    return engine.constrain(result_of(shared), request.sampling)
        except RtpjaxError:
            raise
        except BaseException as error:
            error_id = report(f"The grammar of request {request.request_id}", error)
            raise EngineError(told(error_id)) from error
        if not is_own:
            raise too_slow(request.grammar)
        raise RequestTimeoutError(
            "The request's own time limit was over before its grammar was compiled.",
            param="timeout_ms",
            code="timeout",
        )

    def _send(self, engine: LLMEngine, message: _Message) -> None:
        self._inbox.append(message)
        engine.wake.set()

    def _run(self) -> None:
        """The engine thread."""
        engine = self._engine
        assert engine is not None
        try:
            while not self._is_stopping:
                engine.wake.clear()
                self._receive(engine)
                outputs = engine.step() if engine.has_work else []
                self.failure = self.failure or engine.failure
                self._tell(outputs)
                if engine.failure is not None:
                    break
                if not self._inbox and not self._is_stopping:
                    engine.wait()
        except BaseException:
            self.failure = "The engine's thread has failed. Restart the server; its log says why."
            logger.exception("The engine's thread failed")
        finally:
            self._call(self._end_all)

    def _receive(self, engine: LLMEngine) -> None:
        """Takes the inbox in. What fails there ends the request that it is for."""
        for _ in range(len(self._inbox)):
            message = self._inbox.popleft()
            is_new = not isinstance(message, str)
            request_id = message[0].request_id if is_new else message
            try:
                if is_new:
                    engine.add(*message)
                else:
                    engine.abort(message)
            except RtpjaxError as error:
                self._tell([_refused(request_id, error)])
            except BaseException as error:  # noqa: BLE001 (see report)
                error_id = report(f"Request {request_id}", error)
                self._tell([_error(request_id, told(error_id))])
                engine.send_probe()
            self._arriving.discard(request_id)

    def _tell(self, outputs: Iterable[RequestOutput]) -> None:
        """Has the event loop give outputs to those who wait for them."""
        self._outbox.extend(outputs)
        if self._outbox and not self._call(self._deliver):
            raise EngineError("The event loop takes no calls any more.")

    def _call(self, function: Callable[[], None]) -> bool:
        """Has the event loop call a function; False if it cannot be had to.

        What a call was for is done by the next one, so one that fails is just made again.
        """
        for _ in range(_MAX_CALLS):
            try:
                self._loop.call_soon_threadsafe(function)
            except Exception:
                if self._loop.is_closed():
                    break
                logger.exception("The event loop did not take a call")
            else:
                return True
        return False

    def _deliver(self) -> None:
        while self._outbox:
            output = self._outbox.popleft()
            queue = self._queues.get(output.request_id)
            if queue is not None:
                queue.put_nowait(output)

    def _end_all(self) -> None:
        """The thread has ended: so do all requests, each after what it was told before."""
        self._has_ended = True
        reason = f": {self.failure}" if self.failure else "."
        error = str(EngineError(f"The engine stopped before the answer was complete{reason}"))
        self._outbox.extend(_error(request_id, error) for request_id in list(self._queues))
        self._deliver()


def _error(request_id: str, error: str, **fields: Any) -> RequestOutput:
    return RequestOutput(request_id, "", (), finish_reason="error", error=error, **fields)


def _refused(request_id: str, error: RtpjaxError) -> RequestOutput:
    """The output for a request that the engine's thread refused."""
    if isinstance(error, RequestError):
        return _error(request_id, str(error), error_kind="request", error_param=error.param)
    return _error(request_id, str(error))
