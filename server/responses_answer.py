"""Answers of the responses API: one message item, whole or as the events that build it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from rtpjax.engine.request import TokenLogprob
from server.errors import HttpError
from server.output import Choice, Delta, Usage
from server.protocol.responses import ResponsesBody
from server.sse import named_event
from server.token_text import TokenText

# Why the answer ended -> the response's status and, if it is incomplete, its reason.
_ENDS = {"length": ("incomplete", {"reason": "max_output_tokens"})}


class ResponsesAnswer:
    """Implements AnswerFormat, and says how a stream fails."""

    def __init__(self, model: str, tokens: TokenText, body: ResponsesBody):
        self._tokens = tokens
        self._body = body
        self._id = f"resp_{secrets.token_hex(24)}"
        self._item_id = f"msg_{secrets.token_hex(24)}"
        self._model = model
        self._created_at = int(time.time())
        self._num_events = 0
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._finish_reason: str | None = None

    def first(self, index: int) -> bytes | None:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return b"".join(
            (
                self._event("response.created", response=self._response("in_progress")),
                self._event("response.in_progress", response=self._response("in_progress")),
                self._event(
                    "response.output_item.added",
                    output_index=0,
                    item=self._item("in_progress", with_content=False),
                ),
                self._part_event("response.content_part.added", part=part),
            )
        )

    def delta(self, delta: Delta) -> bytes:
        logprobs = self._entries(delta.logprobs or ())
        self._text.append(delta.text)
        self._logprobs += logprobs
        event = b""
        if delta.text or logprobs:
            event = self._part_event(
                "response.output_text.delta", delta=delta.text, logprobs=logprobs
            )
        if delta.finish_reason is None:
            return event
        self._finish_reason = delta.finish_reason
        part = self._part()
        status, _ = self._end
        return b"".join(
            (
                event,
                self._part_event(
                    "response.output_text.done", text=part["text"], logprobs=part["logprobs"]
                ),
                self._part_event("response.content_part.done", part=part),
                self._event("response.output_item.done", output_index=0, item=self._item(status)),
            )
        )

    def usage(self, usage: Usage) -> bytes:
        status, _ = self._end
        response = self._response(status, usage)
        return self._event(f"response.{status}", response=response)

    def whole(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        [choice] = choices
        self._text = [choice.text]
        self._logprobs = self._entries(choice.logprobs or ())
        self._finish_reason = choice.finish_reason
        status, _ = self._end
        return self._response(status, usage)

    def failure(self, error: HttpError) -> bytes:
        """The last event of a stream that cannot go on."""
        code = "server_error" if error.status >= 500 else error.code or "invalid_prompt"
        response = self._response("failed") | {"error": {"code": code, "message": error.message}}
        return self._event("response.failed", response=response)

    @property
    def _end(self) -> tuple[str, dict[str, str] | None]:
        return _ENDS.get(self._finish_reason or "", ("completed", None))

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._num_events
        self._num_events += 1
        return named_event({"type": kind, "sequence_number": number, **fields})

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return self._event(kind, **place, **fields)

    def _part(self) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": "".join(self._text),
            "annotations": [],
            "logprobs": self._logprobs,
        }

    def _item(self, status: str, *, with_content: bool = True) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [self._part()] if with_content else [],
        }

    def _response(self, status: str, usage: Usage | None = None) -> dict[str, Any]:
        request, chat = self._body.request, self._body.chat
        is_done = status in ("completed", "incomplete")
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "background": False,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": self._end[1] if is_done else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "metadata": self._body.metadata,
            "model": self._model,
            "output": [self._item(status)] if is_done else [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": chat.temperature,
            "text": {"format": request.text.format},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": request.top_logprobs,
            "top_p": chat.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
        }

    def _entries(self, entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        return [
            self._token(entry.token_id, entry.logprob)
            | {"top_logprobs": [self._token(token_id, value) for token_id, value in entry.top]}
            for entry in entries
        ]

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._tokens.text_of(token_id),
            "logprob": max(logprob, -9999.0),
            "bytes": list(self._tokens.bytes_of(token_id)),
        }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
