"""Answers of the legacy completions API: `text_completion`, streamed and whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rtpjax.engine.request import TokenLogprob
from server.answer import NULL, Envelope, dumps
from server.output import Choice, Delta, Usage
from server.recorder import Recorder
from server.token_text import TokenText


class CompletionAnswer:
    """Implements AnswerFormat.

    Attributes:
        echoes: Per choice the text that stands before the generated one (the prompt, with `echo`).
        recorder: Knows the echoed tokens' log-probabilities, if they are asked for.
        num_top: How many likeliest tokens the echo's log-probabilities name.
    """

    def __init__(
        self,
        model: str,
        tokens: TokenText,
        *,
        with_usage: bool,
        usage_so_far: Usage | None = None,
        echoes: Sequence[str] = (),
        recorder: Recorder | None = None,
        num_top: int = 0,
    ):
        self._tokens = tokens
        self._echoes = echoes
        self._recorder = recorder
        self._num_top = num_top
        self._offsets: dict[int, int] = {}
        self._chunk = Envelope(
            "cmpl", "text_completion", model, with_usage=with_usage, usage_so_far=usage_so_far
        )

    def first(self, index: int) -> bytes | None:
        if not self._echoes:
            return None
        logprobs = NULL
        if self._recorder is not None:
            logprobs = dumps(self._logprobs(index, self._echoed(index)))
        return self._event(index, self._echoes[index], logprobs, None)

    def delta(self, delta: Delta) -> bytes:
        logprobs = NULL
        if delta.logprobs is not None:
            logprobs = dumps(self._logprobs(delta.index, delta.logprobs))
        return self._event(delta.index, delta.text, logprobs, delta.finish_reason)

    def usage(self, usage: Usage) -> bytes:
        return self._chunk.usage_event(usage)

    def whole(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        return self._chunk.fields | {
            "choices": [self._choice(choice) for choice in choices],
            "usage": usage.as_json(),
        }

    def _choice(self, choice: Choice) -> dict[str, Any]:
        logprobs = None
        if choice.logprobs is not None:
            entries = [*self._echoed(choice.index), *choice.logprobs]
            logprobs = self._logprobs(choice.index, entries)
        echo = self._echoes[choice.index] if self._echoes else ""
        return {
            "index": choice.index,
            "text": echo + choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }

    def _event(self, index: int, text: str, logprobs: bytes, finish_reason: str | None) -> bytes:
        return self._chunk.event(
            b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}'
            % (index, dumps(text), logprobs, dumps(finish_reason))
        )

    def _echoed(self, index: int) -> list[TokenLogprob | int]:
        """Entries of the prompt's tokens; the first one has no log-probability, only an id."""
        if self._recorder is None:
            return []
        first, *_ = self._recorder.requests[index].prompt_token_ids
        entries = self._recorder.records[index].prompt_logprobs or ()
        others = [entry for entry in entries if entry is not None]
        return [first, *(replace(entry, top=entry.top[: self._num_top]) for entry in others)]

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob | int]) -> dict[str, Any]:
        offset = self._offsets.get(index, 0)
        tokens, offsets, values, top = [], [], [], []
        for entry in entries:
            is_scored = isinstance(entry, TokenLogprob)
            text = self._tokens.text_of(entry.token_id if is_scored else entry)
            tokens.append(text)
            offsets.append(offset)
            offset += len(text)
            values.append(max(entry.logprob, -9999.0) if is_scored else None)
            top.append(self._top(entry) if is_scored else None)
        self._offsets[index] = offset
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        return {self._tokens.text_of(t): max(p, -9999.0) for t, p in entry.top}
