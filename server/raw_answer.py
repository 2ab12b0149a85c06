"""Answers of RTP-LLM's own API, whole and as a stream of the answer so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.answer import dumps
from server.errors import HttpError
from server.extras import aux_info
from server.output import Choice, Delta, Usage
from server.protocol.raw import RawForm
from server.recorder import Record, Recorder

RAW_DONE = b"data:[done]\r\n\r\n"


def raw_failure(error: HttpError) -> bytes:
    """How a stream says that the rest will not come."""
    return _event(error.as_json()) + RAW_DONE


class RawAnswer:
    """Implements AnswerFormat. Each event has all prompts and choices, however few have changed."""

    def __init__(self, form: RawForm, recorder: Recorder):
        self._form = form
        self._recorder = recorder
        self._texts = [""] * len(recorder.requests)
        self._is_finished = [False] * len(recorder.requests)

    @property
    def id(self) -> str:
        return ""

    def first(self, index: int) -> bytes | None:
        return None

    def delta(self, delta: Delta) -> bytes:
        if self._form.is_incremental:
            self._texts = [""] * len(self._texts)
        self._texts[delta.index] += delta.text
        self._is_finished[delta.index] |= delta.finish_reason is not None
        return _event(self._state())

    def usage(self, usage: Usage) -> bytes:
        return b""

    def whole(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        for choice in choices:
            self._texts[choice.index] = choice.text
            self._is_finished[choice.index] = True
        return self._state()

    def _state(self) -> dict[str, Any]:
        n = self._form.n
        each = [self._prompt(range(start, start + n)) for start in range(0, len(self._texts), n)]
        if self._form.is_batch or len(each) > 1:
            return {"response_batch": each}
        return each[0]

    def _prompt(self, indices: Sequence[int]) -> dict[str, Any]:
        texts = [self._texts[i] for i in indices]
        records = [self._recorder.records[i] for i in indices]
        infos = [aux_info([record]) for record in records] if self._form.has_aux_info else []
        answer: dict[str, Any] = {"finished": all(self._is_finished[i] for i in indices)}
        if self._form.is_multi:
            answer |= {"response": texts, "aux_info": infos}
        else:
            answer |= {"response": texts[0], "aux_info": infos[0] if infos else {}}
        if self._form.wants_output_ids:
            answer["output_ids"] = [record.token_ids for record in records]
        if self._form.wants_input_ids:
            answer["input_ids"] = [list(self._recorder.requests[indices[0]].prompt_token_ids)]
        if self._form.loss:
            answer["loss"] = _loss(records[0], each=self._form.loss == 2)
        return answer


def _loss(record: Record, *, each: bool) -> list[float] | float | None:
    """The loss of every prompt token after the first, or their mean; None while it is not known."""
    losses = [-entry.logprob for entry in record.prompt_logprobs or () if entry is not None]
    if each:
        return losses
    return sum(losses) / len(losses) if losses else None


def _event(value: dict[str, Any]) -> bytes:
    return b"data:" + dumps(value) + b"\r\n\r\n"
