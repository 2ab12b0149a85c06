"""Answers of Anthropic's messages API, whole and as events; its errors, too."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from server.answer import dumps
from server.answer_items import Change, Item, Items, object_of
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
    shown: dict[str, Any] = {"type": kind, "message": error.message}
    if error.details is not None:
        shown["details"] = dict(error.details)
    found = {"type": "error", "error": shown}
    return found if error.request_id is None else found | {"request_id": error.request_id}


def messages_failure(error: HttpError) -> bytes:
    """The last event of a stream that cannot go on."""
    return named_event(error_json(error))


class MessagesAnswer:
    """Implements AnswerFormat."""

    def __init__(
        self,
        model: str,
        usage_so_far: Usage,
        *,
        is_cut: bool,
        stop_sequences: Sequence[str],
        is_forced: bool = False,
        hides_thinking: bool = False,
    ):
        """An answer.

        Args:
            model: Its name.
            usage_so_far: The job's, for the counts in the stream's first event.
            is_cut: The context is too short for the tokens asked for, so its end is why the answer
                ends if its length is.
            stop_sequences: The caller's. A format of calls may have others.
            is_forced: The answer is calls and nothing else.
            hides_thinking: Blocks of thinking have no text.
        """
        self._usage = usage_so_far
        self._hides_thinking = hides_thinking
        self._is_cut = is_cut
        self._stop_sequences = frozenset(stop_sequences)
        self._items = Items(has_object_arguments=True, is_forced=is_forced)
        self._message = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }

    @property
    def id(self) -> str:
        return self._message["id"]

    def first(self, index: int) -> bytes | None:
        message = self._message | {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._counts(),
        }
        start = named_event({"type": "message_start", "message": message})
        return start + named_event({"type": "ping"})

    def delta(self, delta: Delta) -> bytes:
        return b"".join(self._written(change) for change in self._items.take(delta))

    def usage(self, usage: Usage) -> bytes:
        return named_event(
            {"type": "message_delta", "delta": self._stop(), "usage": self._counts()}
        ) + named_event({"type": "message_stop"})

    def whole(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        [choice] = choices
        self._items.take_whole(choice)
        content = [self._block(item) for item in self._items.items]
        return self._message | {"content": content, **self._stop(), "usage": self._counts()}

    def _stop(self) -> dict[str, Any]:
        reason, stopped_by = self._items.finish_reason, self._usage.last[0].stop_reason
        if reason == "length":
            reason = "model_context_window_exceeded" if self._is_cut else "max_tokens"
            return {"stop_reason": reason, "stop_sequence": None}
        if reason == "tool_calls":
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if stopped_by in self._stop_sequences:
            return {"stop_reason": "stop_sequence", "stop_sequence": stopped_by}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def _counts(self) -> dict[str, Any]:
        usage = self._usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        }

    def _block(self, item: Item) -> dict[str, Any]:
        match item.kind:
            case "text":
                return {"type": "text", "text": item.text}
            case "reasoning":
                text = "" if self._hides_thinking else item.text
                return {"type": "thinking", "thinking": text, "signature": ""}
            case "call":
                values = object_of(item.text)
                return {"type": "tool_use", "id": item.call_id, "name": item.name, "input": values}

    def _written(self, change: Change) -> bytes:
        """The events of a change."""
        item = change.item
        if change.step == "open":
            event = {"type": "content_block_start", "index": item.index}
            return named_event(event | {"content_block": self._block(item)})
        if change.step == "close":
            # Clients expect a signature before the end; ours is empty, as nothing checks it.
            signature = _delta(item, "signature_delta", "signature", "")
            stop = named_event({"type": "content_block_stop", "index": item.index})
            return signature + stop if item.kind == "reasoning" else stop
        if item.kind == "reasoning" and self._hides_thinking:
            return b""
        return _delta(item, *_DELTAS[item.kind], change.text)


_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


def _delta(item: Item, kind: str, field: str, text: str) -> bytes:
    # Joined from bytes: this is the path of every token.
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
        b'"delta":{"type":"%b","%b":%b}}\n\n'
        % (item.index, kind.encode(), field.encode(), dumps(text))
    )
