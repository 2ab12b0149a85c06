"""Answers of the chat API: `chat.completion` and its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rtpjax.engine.request import TokenLogprob
from server.answer import NULL, Envelope, dumps
from server.output import Choice, Delta, Usage
from server.token_text import TokenText


class ChatAnswer:
    """Implements AnswerFormat. Chunks are joined from bytes: this is the path of every token."""

    def __init__(self, model: str, tokens: TokenText, *, with_usage: bool):
        self._tokens = tokens
        self._chunk = Envelope("chatcmpl", "chat.completion.chunk", model, with_usage=with_usage)

    def first(self, index: int) -> bytes | None:
        return self._event(index, b'{"role":"assistant","content":""}', NULL, NULL)

    def delta(self, delta: Delta) -> bytes:
        finish = NULL if delta.finish_reason is None else dumps(delta.finish_reason)
        logprobs = NULL if delta.logprobs is None else dumps(self._logprobs(delta.logprobs))
        if delta.finish_reason is None or delta.text or delta.logprobs:
            content = b'{"content":' + dumps(delta.text) + b"}"
            event = self._event(delta.index, content, logprobs, NULL)
            if delta.finish_reason is None:
                return event
            return event + self._event(delta.index, b"{}", NULL, finish)
        return self._event(delta.index, b"{}", NULL, finish)

    def usage(self, usage: Usage) -> bytes:
        return self._chunk.usage_event(usage)

    def whole(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        return self._chunk.fields | {
            "object": "chat.completion",
            "choices": [self._choice(choice) for choice in choices],
            "usage": usage.as_json(),
        }

    def _choice(self, choice: Choice) -> dict[str, Any]:
        logprobs = None if choice.logprobs is None else self._logprobs(choice.logprobs)
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text},
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }

    def _event(self, index: int, delta: bytes, logprobs: bytes, finish: bytes) -> bytes:
        return self._chunk.event(
            b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}'
            % (index, delta, logprobs, finish)
        )

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        content = []
        for entry in entries:
            top = [self._token(token_id, logprob) for token_id, logprob in entry.top]
            content.append(self._token(entry.token_id, entry.logprob) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._tokens.text_of(token_id),
            "logprob": max(logprob, -9999.0),  # JSON has no -Infinity; OpenAI's own floor
            "bytes": list(self._tokens.bytes_of(token_id)),
        }
