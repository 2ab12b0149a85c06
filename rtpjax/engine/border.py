"""What crosses between the server and its engine: plain records that can be pickled.

    server ── GenerationRequest, Abort ──────────────► engine
           ◄── Loaded, then a Report a step, Ended ───

A request's grammar crosses as it was asked for, and is compiled by the engine. Times are those of
time.monotonic, which all processes of a machine share.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import dataclass

from rtpjax.engine.request import EngineStats, GenerationRequest, RequestOutput
from rtpjax.engine.stream import has_only_tokens
from rtpjax.errors import EngineError, RtpjaxError


@dataclass(frozen=True, slots=True)
class Abort:
    """Nobody waits for a request any more."""

    request_id: str


ToEngine = GenerationRequest | Abort


@dataclass(frozen=True, slots=True)
class Loaded:
    """The engine takes requests.

    Attributes:
        max_model_len: Tokens of prompt and output together.
        num_tokens: Tokens that the tokenizer knows.
        end_token_ids: The model's own end tokens.
        max_num_waiting: Requests that may wait.
        stats: From before the first request.
    """

    max_model_len: int
    num_tokens: int
    end_token_ids: frozenset[int]
    max_num_waiting: int
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """There is no engine."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Report:
    """What a step has brought.

    Most outputs have a token and its text, and nothing else that is new. Of these there are
    columns, which are made, sent and read much faster than an object each.

    Attributes:
        request_ids, token_ids, texts: The columns.
        outputs: The others, in order; they come after.
        stats: After the step.
        num_taken: Requests that the engine has taken in since it began.
        failure: Why the engine cannot go on, or None.
    """

    request_ids: list[str]
    token_ids: list[tuple[int, ...]]
    texts: list[str]
    outputs: list[RequestOutput]
    stats: EngineStats
    num_taken: int
    failure: str | None = None

    @classmethod
    def of(
        cls,
        outputs: Iterable[RequestOutput],
        stats: EngineStats,
        num_taken: int,
        failure: str | None,
    ) -> Report:
        """The report of all that a step has made."""
        plain: list[RequestOutput] = []
        others: list[RequestOutput] = []
        for output in outputs:
            (plain if has_only_tokens(output) else others).append(output)
        return cls(
            [output.request_id for output in plain],
            [output.token_ids for output in plain],
            [output.text for output in plain],
            others,
            stats,
            num_taken,
            failure,
        )


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine cannot go on, and may hang: a host of its mesh is gone."""

    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Another host of the mesh was asked to end, so all end."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The engine has ended; there is nothing after this.

    Attributes:
        failure: Why, or None where it was asked to.
    """

    failure: str | None


FromEngine = Loaded | LoadFailed | Report | Failed | Leave | Ended


def portable(error: BaseException) -> BaseException:
    """The error itself if another process can have it, else one that says the same."""
    if isinstance(error, RtpjaxError):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 (whatever it has with it)
            return type(error)(str(error))
        return error.with_traceback(None)
    return EngineError(
        f"The engine could not be started: {type(error).__name__}: {error}. The log above says "
        "where."
    )
