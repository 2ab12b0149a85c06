"""Runs an engine for somebody else: takes records in, and tells what each step has brought.

It does not know whether the other side is a thread of this process or another process.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

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
from rtpjax.engine.request import RequestOutput
from rtpjax.errors import EngineError, RtpjaxError

if TYPE_CHECKING:
    from rtpjax.engine.engine import LLMEngine

logger = logging.getLogger(__name__)


class EngineLoop:
    """The engine's side of the border. `run` is for one thread, all else for any.

    A record that fails ends its own request. Where the loop itself cannot go on, its last record
    says so.

    Args:
        load: Makes the engine: loads weights, compiles. It is given this loop, for what only those
            can see who watch the other hosts of a mesh.
        send: Gets a record to the other side.
    """

    def __init__(
        self, load: Callable[[EngineLoop], LLMEngine], send: Callable[[FromEngine], object]
    ):
        self._load = load
        self._send = send
        self._inbox: deque[ToEngine] = deque()
        self._engine: LLMEngine | None = None
        self._is_stopping = threading.Event()
        self._num_taken = 0
        self._failure: str | None = None
        self._at_end: list[Callable[[], object]] = []

    @property
    def is_serving(self) -> bool:
        """Whether the engine has been loaded."""
        return self._engine is not None

    def put(self, records: Iterable[ToEngine]) -> None:
        """Takes records for the next step."""
        self._inbox.extend(records)
        self._wake()

    def stop(self) -> None:
        """Ends the loop after the step under way."""
        self._is_stopping.set()
        self._wake()

    def fail(self, reason: str) -> None:
        """The engine cannot go on, though its thread may hang."""
        self._failure = reason
        with contextlib.suppress(Exception):  # whoever calls has more to do
            self._send(Failed(reason))

    def leave(self) -> None:
        """Another host of the mesh was asked to end."""
        self._send(Leave())

    def at_end(self, function: Callable[[], object]) -> None:
        """Has a function called when the loop has ended and the engine has not failed."""
        self._at_end.append(function)

    def run(self) -> None:
        """Loads, serves until `stop` or a failure, and says how it ended."""
        try:
            engine = self._load(self)
        except BaseException as error:  # noqa: BLE001 (told to the other side)
            self._send(LoadFailed(error))
            return
        try:
            self._send(_loaded(engine))
            self._engine = engine
            self._serve(engine)
        except BaseException:
            self._failure = "The engine's thread has failed. Restart the server; its log says why."
            logger.exception("The engine's thread failed")
        finally:
            if self._failure is None:
                for function in self._at_end:
                    function()
            with contextlib.suppress(Exception):
                self._send(Ended(self._failure))

    def _wake(self) -> None:
        if self._engine is not None:
            self._engine.wake.set()

    def _serve(self, engine: LLMEngine) -> None:
        while not self._is_stopping.is_set():
            engine.wake.clear()
            num_records = len(self._inbox)
            outputs = self._receive(engine, num_records)
            has_work = engine.has_work
            if has_work:
                outputs += engine.step()
            self._failure = self._failure or engine.failure
            if num_records or has_work:
                self._send(Report.of(outputs, engine.stats(), self._num_taken, self._failure))
            if engine.failure is not None:
                return
            if not self._inbox and not self._is_stopping.is_set():
                engine.wait()

    def _receive(self, engine: LLMEngine, num_records: int) -> list[RequestOutput]:
        """Takes records of the inbox in. What fails there ends the request that it is for."""
        outputs = []
        for _ in range(num_records):
            record = self._inbox.popleft()
            self._num_taken += not isinstance(record, Abort)
            try:
                if isinstance(record, Abort):
                    engine.abort(record.request_id)
                else:
                    engine.add(record)
            except RtpjaxError as error:
                outputs.append(failed(record.request_id, error))
            except BaseException as error:  # noqa: BLE001 (see report)
                error_id = report(f"Request {record.request_id}", error)
                outputs.append(failed(record.request_id, EngineError(told(error_id))))
                engine.send_probe()
        return outputs


def _loaded(engine: LLMEngine) -> Loaded:
    return Loaded(
        max_model_len=engine.config.max_model_len,
        num_tokens=engine.num_tokens,
        end_token_ids=engine.end_token_ids,
        max_num_waiting=engine.config.max_num_waiting,
        stats=engine.stats(),
    )
