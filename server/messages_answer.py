"""Answers of Anthropic's messages API, whole and as events; its errors, too."""

from __future__ import annotations

import secrets
from typing import Any

from server.answer import dumps
from server.errors import HttpError
from server.output import Choice, Delta, Usage
from server.sse import named_event

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_json(error: HttpError) -> dict[str, Any]:
    """An error as Anthropic's clients expect it."""
    default = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = _ERROR_TYPES.get(error.status, default)
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def messages_failure(error: HttpError) -> bytes:
    """The last event of a stream that cannot go on."""
    return named_event(error_json(error))


class MessagesAnswer:
    """Implements AnswerFormat.

    Attributes:
        usage_so_far: The job's, for the counts in the stream's first event.
        is_cut: The context is too short for the tokens asked for, so its end is why the answer
            ends if its length is.
    """

    def __init__(self, model: str, usage_so_far: Usage, *, is_cut: bool):
        self._usage = usage_so_far
        self._is_cut = is_cut
        self._finish_reason: str | None = None
        self._message = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }

    def first(self, index: int) -> bytes | None:
        message = self._message | {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._counts(),
        }
        block = {"type": "text", "text": ""}
        return b"".join(
            (
                named_event({"type": "message_start", "message": message}),
                named_event({"type": "content_block_start", "index": 0, "content_block": block}),
                named_event({"type": "ping"}),
            )
        )

    def delta(self, delta: Delta) -> bytes:
        events = b""
        if delta.text:
            # Joined from bytes: this is the path of every token.
            events = (
                b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
                b'"delta":{"type":"text_delta","text":%b}}\n\n' % dumps(delta.text)
            )
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason
            events += named_event({"type": "content_block_stop", "index": 0})
        return events

    def usage(self, usage: Usage) -> bytes:
        return named_event(
            {"type": "message_delta", "delta": self._stop(), "usage": self._counts()}
        ) + named_event({"type": "message_stop"})

    def whole(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        [choice] = choices
        self._finish_reason = choice.finish_reason
        content = [{"type": "text", "text": choice.text}] if choice.text else []
        return self._message | {"content": content, **self._stop(), "usage": self._counts()}

    def _stop(self) -> dict[str, Any]:
        if self._finish_reason == "length":
            reason = "model_context_window_exceeded" if self._is_cut else "max_tokens"
            return {"stop_reason": reason, "stop_sequence": None}
        stopped_by = self._usage.last[0].stop_reason
        if isinstance(stopped_by, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": stopped_by}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def _counts(self) -> dict[str, int]:
        usage = self._usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
        }
