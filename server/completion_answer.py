"""Answers of the legacy completions API: `text_completion`, streamed and whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rtpjax.engine.request import TokenLogprob
from server.answer import NULL, Envelope, dumps
from server.output import Choice, Delta, Usage
from server.token_text import TokenText


class CompletionAnswer:
    """Implements AnswerFormat.

    Attributes:
        echoes: Per choice the text that stands before the generated one (the prompt, with `echo`).
    """

    def __init__(
        self, model: str, tokens: TokenText, *, with_usage: bool, echoes: Sequence[str] = ()
    ):
        self._tokens = tokens
        self._echoes = echoes
        self._offsets: dict[int, int] = {}
        self._chunk = Envelope("cmpl", "text_completion", model, with_usage=with_usage)

    def first(self, index: int) -> bytes | None:
        if not self._echoes:
            return None
        return self._event(index, self._echoes[index], NULL, None)

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
            logprobs = self._logprobs(choice.index, choice.logprobs)
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

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        offset = self._offsets.get(index, 0)
        tokens, offsets, top = [], [], []
        for entry in entries:
            text = self._tokens.text_of(entry.token_id)
            tokens.append(text)
            offsets.append(offset)
            offset += len(text)
            top.append({self._tokens.text_of(t): max(p, -9999.0) for t, p in entry.top})
        self._offsets[index] = offset
        return {
            "tokens": tokens,
            "token_logprobs": [max(entry.logprob, -9999.0) for entry in entries],
            "top_logprobs": top,
            "text_offset": offsets,
        }
