"""A process that prepares requests, driven by one thread of the server.

Some work keeps Python's lock from its beginning to its end: json.loads of megabytes, collecting
what it made, reading a tokenizer's millions of ids. A thread that does such work holds up the event
loop for as long. A process does not, and one that takes too long or too much memory can be ended.

    server's thread                         process
    start ── model, tokenizer, settings ──► context
    call ─── name of prepare, body ───────► prepare(body, context)
    result ◄── pickled, with log lines ────

Both sides have the engine, the tokenizer and what is made of it; in a result these are names.
"""

from __future__ import annotations

import gc
import importlib
import io
import logging
import logging.handlers
import pickle
import queue
import resource
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rtpjax.errors import RequestError, RequestTimeoutError
from server.forks import Fork, forks
from server.lanes import NeedsLane

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from server.context import ModelContext

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_LOOK_EVERY_S = 0.25
_MEMORY_BYTES = 4 * 1024**3


class Wanted(Protocol):
    """Until when somebody waits for a result."""

    deadline: float
    is_wanted: bool


@dataclass(slots=True)
class EngineFacts:
    """What preparing asks of the engine; stands in its place in a worker."""

    tokenizer: PreTrainedTokenizerFast
    model_name: str
    max_model_len: int


@dataclass(frozen=True, slots=True)
class _Call:
    """One request: which function is to prepare it, in which lane, and what has changed since."""

    module: str
    name: str
    lane: str
    max_model_len: int
    log_level: int


@dataclass(slots=True)
class _Result:
    value: Any = None
    error: Exception | None = None
    logs: list[logging.LogRecord] = field(default_factory=list)


class WorkerError(Exception):
    """A defect: `prepare` raised what nobody foresaw. The message is the worker's traceback."""


class Worker:
    """The server's side. Starts its process when it is first needed, and again if it ended."""

    def __init__(self, context: ModelContext):
        self._context = context
        self._fork: Fork | None = None

    def call(
        self,
        prepare: Callable[[bytes, ModelContext], ResultT],
        body: bytes,
        lane: str,
        turn: Wanted,
    ) -> ResultT:
        """What `prepare`, the function of a route, makes of a body.

        Raises:
            RequestError: It refuses the body, or the process ended over it.
            RequestTimeoutError: Its time was over, or nobody waits any more.
        """
        call = _Call(
            module=prepare.__module__,
            name=prepare.__qualname__,
            lane=lane,
            max_model_len=self._context.engine.max_model_len,
            log_level=logging.getLogger().getEffectiveLevel(),
        )
        try:
            connection = self._running().connection
            connection.send_bytes(pickle.dumps(call))
            connection.send_bytes(body)
            while not connection.poll(_LOOK_EVERY_S):
                if not turn.is_wanted or time.monotonic() > turn.deadline:
                    self.close()
                    raise RequestTimeoutError("nobody waits for this request any more")
            content = connection.recv_bytes()
        except (EOFError, OSError) as error:
            self.close()
            logger.error("a process ended while it prepared a request of %d bytes", len(body))
            reason = "preparing this request takes more memory than there is; send a smaller one"
            raise RequestError(reason, code="preparation_failed") from error
        return self._value_of(_Unpickler(content, _shared(self._context)).load())

    @property
    def pid(self) -> int | None:
        """Of its process, if it has one."""
        return None if self._fork is None else self._fork.pid

    def _value_of(self, result: _Result) -> Any:
        for record in result.logs:
            named = logging.getLogger(record.name)
            if named.isEnabledFor(record.levelno):
                named.handle(record)
        if result.error is not None:
            raise result.error
        return result.value

    def _running(self) -> Fork:
        if self._fork is None or not self._fork.is_alive:
            self.close()
            self._fork = forks().fork()
            engine = self._context.engine
            facts = EngineFacts(engine.tokenizer, engine.model_name, engine.max_model_len)
            self._fork.connection.send_bytes(pickle.dumps((facts, self._context.config)))
        return self._fork

    def close(self) -> None:
        """Ends the process, whatever it is at."""
        fork, self._fork = self._fork, None
        if fork is not None:
            fork.kill()


def serve(connection: Connection) -> None:
    """The process: answers calls until the server is gone."""
    from server.context import ModelContext

    _limit_memory()
    logs: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logging.getLogger().addHandler(logging.handlers.QueueHandler(logs))
    try:
        facts, config = pickle.loads(connection.recv_bytes())
        context = ModelContext(facts, config)
        names = {id(thing): name for name, thing in _shared(context).items()}
        while not logs.empty():
            logs.get()  # the server has said the same when it started
        gc.freeze()
        while True:
            call, body = pickle.loads(connection.recv_bytes()), connection.recv_bytes()
            facts.max_model_len, context.lane = call.max_model_len, call.lane
            logging.getLogger().setLevel(call.log_level)
            result = _prepared(call, body, context)
            del body
            while not logs.empty():
                result.logs.append(logs.get())
            connection.send_bytes(_pickled(result, names))
    except (EOFError, OSError):
        return


def _prepared(call: _Call, body: bytes, context: ModelContext) -> _Result:
    # Large bodies are millions of small objects, which a collection would look through again and
    # again; next to nothing of them are cycles.
    gc.disable()
    try:
        handler = getattr(importlib.import_module(call.module), call.name)
        return _Result(handler.__wrapped__(body, context))
    except (RequestError, NeedsLane) as error:
        return _Result(error=error.with_traceback(None))
    except MemoryError:
        reason = "preparing this request takes more memory than allowed; send a smaller one"
        return _Result(error=RequestError(reason, code="preparation_failed"))
    except Exception:  # noqa: BLE001 (told to the server's error handler)
        return _Result(error=WorkerError(traceback.format_exc()))
    finally:
        gc.enable()


def _limit_memory() -> None:
    """A body that takes too much ends here, with an error, and not the machine's memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, _MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _shared(context: ModelContext) -> dict[str, Any]:
    """What both sides have, by name."""
    return {
        "engine": context.engine,
        "tokenizer": context.engine.tokenizer,
        "token_text": context.token_text,
        "encoder": context.encoder,
        **{f"calls of {name}": calls for name, calls in context.templates.supports.items()},
    }


def _pickled(result: _Result, names: Mapping[int, str]) -> bytes:
    content = io.BytesIO()
    _Pickler(content, names).dump(result)
    return content.getvalue()


class _Pickler(pickle.Pickler):
    """Writes names in the place of what both sides have."""

    def __init__(self, content: io.BytesIO, names: Mapping[int, str]):
        super().__init__(content, protocol=pickle.HIGHEST_PROTOCOL)
        self._names = names

    def persistent_id(self, obj: object) -> str | None:
        return self._names.get(id(obj))


class _Unpickler(pickle.Unpickler):
    """Puts the server's own objects where a result has their names."""

    def __init__(self, content: bytes, shared: Mapping[str, Any]):
        super().__init__(io.BytesIO(content))
        self._shared = shared

    def persistent_load(self, pid: str) -> Any:
        return self._shared[pid]
