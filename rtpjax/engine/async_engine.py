"""The engine for an event loop: a thread runs the steps, messages cross between the two.

    event loop                                   engine thread
    generate() ── Add, Abort ──► inbox ──────►   add / abort, step, step, ...
    queue of the request ◄── call_soon_threadsafe(outputs of a step) ──┘

Only messages cross, so the engine could move to a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable

from transformers import PreTrainedTokenizerFast

from rtpjax.engine.constraint import Constraint
from rtpjax.engine.engine import LLMEngine
from rtpjax.engine.grammar import TIME_LIMIT_S, too_slow
from rtpjax.engine.request import EngineStats, GenerationRequest, RequestOutput
from rtpjax.errors import DrainingError, EngineError

logger = logging.getLogger(__name__)

# A request to add, with its place in its grammar if it has one, or the id of a request to abort.
_Message = tuple[GenerationRequest, Constraint | None] | str


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
        self._wake = threading.Condition()
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
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def fail(self, reason: str) -> None:
        """Ends all requests with an error and takes no new ones, though the thread may hang.

        Thread-safe. For failures that only the outside can see: a host of the mesh is gone.
        """
        self.failure = reason
        if self._thread is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end_all)

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
            reason = self.failure or "restart the server"
            raise DrainingError(f"The engine has stopped: {reason}.", code="stopped")
        self._engine.check(request, num_arriving=len(self._inbox))
        return self._outputs(request)

    async def _outputs(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput]:
        queue: asyncio.Queue[RequestOutput] = asyncio.Queue()
        assert request.request_id not in self._queues, f"request id {request.request_id} is in use"
        self._queues[request.request_id] = queue
        is_finished = False
        try:
            self._send((request, await self._constrain(request)))
            if self._has_ended:
                self._end_all()
            while not is_finished:
                output = await queue.get()
                is_finished = output.finish_reason is not None
                yield output
        finally:
            del self._queues[request.request_id]
            if not is_finished:
                self._send(request.request_id)

    async def _constrain(self, request: GenerationRequest) -> Constraint | None:
        """Compiles the request's grammar in a thread of its own.

        Raises:
            RequestError: It cannot be compiled, or not in time.
        """
        if not request.is_constrained:
            return None
        assert self._engine is not None
        compiling = asyncio.wrap_future(
            self._engine.grammars.submit(request.grammar, request.reasoning_limit)
        )
        try:
            # Others may wait for the same grammar: it is not cancelled.
            compiled = await asyncio.wait_for(asyncio.shield(compiling), TIME_LIMIT_S)
        except TimeoutError:
            raise too_slow(request.grammar) from None
        return self._engine.constrain(compiled, request.sampling)

    def _send(self, message: _Message) -> None:
        with self._wake:
            self._inbox.append(message)
            self._wake.notify()

    def _run(self) -> None:
        """The engine thread."""
        engine = self._engine
        assert engine is not None
        try:
            while self._receive(engine):
                outputs = engine.step()
                if outputs:
                    self._loop.call_soon_threadsafe(self._deliver, outputs)
        finally:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._end_all)

    def _receive(self, engine: LLMEngine) -> bool:
        """Takes the inbox in; waits for a message if nothing else is to do. False to stop."""
        with self._wake:
            while not (self._inbox or engine.has_work or self._is_stopping):
                self._wake.wait()
            messages = list(self._inbox)
            self._inbox.clear()
        for message in messages:
            if isinstance(message, str):
                engine.abort(message)
            else:
                engine.add(*message)
        return not self._is_stopping

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            queue = self._queues.get(output.request_id)
            if queue is not None:
                queue.put_nowait(output)

    def _end_all(self) -> None:
        """The thread has ended: so do all requests."""
        self._has_ended = True
        reason = f": {self.failure}" if self.failure else "."
        error = str(EngineError(f"The engine stopped before the answer was complete{reason}"))
        self._deliver(
            [RequestOutput(i, "", (), finish_reason="error", error=error) for i in self._queues]
        )
