"""What an answer tells besides its text when the request asks: token ids, times, debug info.

These wrap an answer's format. Chunks of a stream are taken apart and put together again, which only
the requests that ask for extras pay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rtpjax.engine.request import TokenLogprob
from server.answer import AnswerFormat, dumps
from server.context import ModelContext
from server.debug_info import DebugInfo
from server.generation import Job
from server.output import Choice, Delta, Usage
from server.recorder import Record, Recorder
from server.token_text import TokenText


@dataclass(frozen=True, slots=True)
class Extras:
    """What is asked for.

    Attributes:
        token_ids: The ids of prompt and output.
        prompt_logprobs: Log-probabilities of the prompt.
        aux_info: RTP-LLM's times and counts.
        debug_info: RTP-LLM's account of what the model saw and said.
        per_choice: Whether what belongs to a prompt stands in the choices (an answer with several
            prompts), not beside them.
    """

    token_ids: bool = False
    prompt_logprobs: bool = False
    aux_info: bool = False
    debug_info: DebugInfo | None = None
    per_choice: bool = False

    @property
    def any(self) -> bool:
        """Whether an answer needs the wrapper at all."""
        return self.token_ids or self.prompt_logprobs or self.aux_info or bool(self.debug_info)


class WithExtras:
    """Implements AnswerFormat around another one."""

    def __init__(self, answer: AnswerFormat, extras: Extras, recorder: Recorder, tokens: TokenText):
        self._answer = answer
        self._extras = extras
        self._recorder = recorder
        self._tokens = tokens
        self._started: set[int] = set()

    @property
    def id(self) -> str:
        return self._answer.id

    def first(self, index: int) -> bytes | None:
        event = self._answer.first(index)
        if event is None:
            return None
        self._started.add(index)
        return _edited(event, lambda chunk: self._add_prompt(chunk, [index]))

    def delta(self, delta: Delta) -> bytes:
        return _edited(self._answer.delta(delta), self._add_to_chunk)

    def usage(self, usage: Usage) -> bytes:
        return self._answer.usage(usage)

    def whole(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        body = self._answer.whole(choices, usage)
        assert isinstance(body, dict), "an answer with extras is taken apart here"
        self._add_prompt(body, range(len(choices)))
        for choice in body["choices"]:
            if self._extras.token_ids:
                choice["token_ids"] = self._recorder.records[choice["index"]].token_ids
        self._add_info(body)
        return body

    def _add_to_chunk(self, chunk: dict[str, Any]) -> None:
        [choice] = chunk["choices"]
        if choice["index"] not in self._started:
            self._started.add(choice["index"])
            self._add_prompt(chunk, [choice["index"]])
        if self._extras.token_ids:
            choice["token_ids"] = self._recorder.records[choice["index"]].take()
        if choice["finish_reason"] is not None:
            self._add_info(chunk)

    def _add_prompt(self, body: dict[str, Any], indices: Sequence[int]) -> None:
        for index in indices if self._extras.per_choice else indices[:1]:
            place = body["choices"][indices.index(index)] if self._extras.per_choice else body
            if self._extras.token_ids:
                place["prompt_token_ids"] = list(self._recorder.requests[index].prompt_token_ids)
            if self._extras.prompt_logprobs:
                entries = self._recorder.records[index].prompt_logprobs or ()
                place["prompt_logprobs"] = [self._prompt_logprob(entry) for entry in entries]

    def _prompt_logprob(self, entry: TokenLogprob | None) -> dict[str, Any] | None:
        if entry is None:
            return None
        ranks = {token_id: rank + 1 for rank, (token_id, _) in enumerate(entry.top)}
        return {
            str(token_id): {
                "logprob": max(logprob, -9999.0),
                "rank": ranks.get(token_id),
                "decoded_token": self._tokens.text_of(token_id),
            }
            for token_id, logprob in ((entry.token_id, entry.logprob), *entry.top)
        }

    def _add_info(self, body: dict[str, Any]) -> None:
        if self._extras.aux_info:
            body["aux_info"] = aux_info(self._recorder.records)
        if self._extras.debug_info is not None:
            outputs = [record.token_ids for record in self._recorder.records]
            body["debug_info"] = self._extras.debug_info.as_json(outputs)


def with_extras(context: ModelContext, job: Job, extras: Extras) -> Job:
    """The job, following its requests if some extras are asked for."""
    if extras.any:
        job.recorder = job.recorder or Recorder(context.engine, job.requests)
        job.answer = WithExtras(job.answer, extras, job.recorder, context.token_text)
    return job


def aux_info(records: Sequence[Record]) -> dict[str, Any]:
    """RTP-LLM's `aux_info` over the choices of a prompt; times are in milliseconds."""
    lasts = [record.last for record in records if record.last is not None]
    starts = [record.start_s for record in records]
    firsts = [record.first_s for record in records if record.first_s is not None]
    ends = [record.last_s for record in records if record.last_s is not None]
    start_s = min(starts)
    return {
        "cost_time": _ms(max(ends, default=start_s) - start_s),
        "first_token_cost_time": _ms(min(firsts, default=start_s) - start_s),
        "wait_time": _ms(max((output.wait_s for output in lasts), default=0.0)),
        "iter_count": max((record.num_outputs for record in records), default=0),
        "input_len": lasts[0].num_prompt_tokens if lasts else 0,
        "output_len": sum(len(record.token_ids) for record in records),
        "prefix_len": 0,  # of a prompt that the operator sets; there is none
        "reuse_len": lasts[0].num_cached_tokens if lasts else 0,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _edited(events: bytes, edit: Any) -> bytes:
    """Server-sent events with each one's JSON changed by `edit`."""
    edited = []
    for event in events.split(b"\n\n"):
        if event:
            chunk = json.loads(event.removeprefix(b"data: "))
            edit(chunk)
            edited.append(b"data: " + dumps(chunk) + b"\n\n")
    return b"".join(edited)
