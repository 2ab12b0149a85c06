"""Answers of the responses API: its output items, whole or as the events that build them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from rtpjax.engine.request import TokenLogprob
from server.answer import dumps
from server.answer_items import Change, Item, Items
from server.errors import HttpError
from server.output import Choice, Delta, Usage
from server.protocol.responses import ResponsesBody
from server.sse import named_event
from server.token_text import TokenText

# Why the answer ended -> the response's status and, if it is incomplete, its reason.
_ENDS = {"length": ("incomplete", {"reason": "max_output_tokens"})}
_ID_PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}


class ResponsesAnswer:
    """Implements AnswerFormat, and says how a stream fails."""

    def __init__(self, model: str, tokens: TokenText, body: ResponsesBody):
        self._tokens = tokens
        self._shown = _shown(body, model)
        self._names = body.tools.names
        self._id = f"resp_{secrets.token_hex(24)}"
        self._created_at = int(time.time())
        self._num_events = 0
        self._items = Items(is_forced=body.chat.calls.choice == "required")
        self._item_ids: list[str] = []

    @property
    def id(self) -> str:
        return self._id

    def first(self, index: int) -> bytes | None:
        return b"".join(
            self._state_event(kind, self._response("in_progress"))
            for kind in ("created", "in_progress")
        )

    def delta(self, delta: Delta) -> bytes:
        return b"".join(self._written(change) for change in self._items.take(delta))

    def usage(self, usage: Usage) -> bytes:
        status, _ = self._end
        return self._state_event(status, self._response(status, usage))

    def whole(self, choices: list[Choice], usage: Usage) -> bytes:
        [choice] = choices
        self._items.take_whole(choice)
        return self._response(self._end[0], usage)

    def failure(self, error: HttpError) -> bytes:
        """The last event of a stream that cannot go on."""
        code = "server_error" if error.status >= 500 else error.code or "invalid_prompt"
        shown = {"code": code, "message": error.message}
        return self._state_event("failed", self._response("failed", error=shown))

    @property
    def _end(self) -> tuple[str, dict[str, str] | None]:
        return _ENDS.get(self._items.finish_reason or "", ("completed", None))

    def _event(self, kind: str, **fields: Any) -> bytes:
        return named_event({"type": kind, "sequence_number": self._next_number(), **fields})

    def _state_event(self, state: str, response: bytes) -> bytes:
        """An event with the response as it is now."""
        kind = f"response.{state}"
        head = dumps({"type": kind, "sequence_number": self._next_number()})[:-1]
        return b'event: %b\ndata: %b,"response":%b}\n\n' % (kind.encode(), head, response)

    def _next_number(self) -> int:
        self._num_events += 1
        return self._num_events - 1

    def _written(self, change: Change) -> bytes:
        """The events of a change."""
        item = change.item
        if change.step == "open":
            return self._opened(item)
        if change.step == "close":
            return self._closed(item)
        match item.kind:
            case "call":
                kind, fields = "response.function_call_arguments.delta", {}
            case "reasoning":
                kind, fields = "response.reasoning_text.delta", {"content_index": 0}
            case "text":
                kind = "response.output_text.delta"
                fields = {"content_index": 0, "logprobs": self._entries(change.logprobs)}
        return self._event(kind, **self._place(item), **fields, delta=change.text)

    def _opened(self, item: Item) -> bytes:
        shown = self._item(item, "in_progress")
        event = self._event("response.output_item.added", output_index=item.index, item=shown)
        if item.kind == "call":
            return event
        part = self._part(item)
        return event + self._event(
            "response.content_part.added", **self._place(item), content_index=0, part=part
        )

    def _closed(self, item: Item) -> bytes:
        place = self._place(item)
        if item.kind == "call":
            events = [
                self._event(
                    "response.function_call_arguments.done",
                    **place, name=self._named(item)["name"],
                    arguments=item.text,
                )
            ]  # fmt: skip
        else:
            place["content_index"] = 0
            part = self._part(item)
            name = "output_text" if item.kind == "text" else "reasoning_text"
            done = {key: part[key] for key in ("text", "logprobs") if key in part}
            events = [
                self._event(f"response.{name}.done", **place, **done),
                self._event("response.content_part.done", **place, part=part),
            ]
        shown = self._item(item, _status(item))
        events.append(self._event("response.output_item.done", output_index=item.index, item=shown))
        return b"".join(events)

    def _place(self, item: Item) -> dict[str, Any]:
        return {"item_id": self._id_of(item), "output_index": item.index}

    def _id_of(self, item: Item) -> str:
        while len(self._item_ids) <= item.index:
            self._item_ids.append(f"{_ID_PREFIXES[item.kind]}_{secrets.token_hex(24)}")
        return self._item_ids[item.index]

    def _named(self, item: Item) -> dict[str, str]:
        """The name of a call's function, and its namespace if it has one."""
        return self._names.get(item.name, {"name": item.name})

    def _part(self, item: Item) -> dict[str, Any]:
        if item.kind == "reasoning":
            return {"type": "reasoning_text", "text": item.text}
        return {
            "type": "output_text",
            "text": item.text,
            "annotations": [],
            "logprobs": self._entries(item.logprobs),
        }

    def _item(self, item: Item, status: str) -> dict[str, Any]:
        """An item as it is now; its content shows once it is done."""
        shown = {"id": self._id_of(item), "status": status}
        if item.kind == "call":
            call = {"call_id": item.call_id, "arguments": item.text}
            return {"type": "function_call", **shown, **call, **self._named(item)}
        content = [] if status == "in_progress" else [self._part(item)]
        if item.kind == "reasoning":
            return {"type": "reasoning", **shown, "summary": [], "content": content}
        return {"type": "message", **shown, "role": "assistant", "content": content}

    def _response(
        self, status: str, usage: Usage | None = None, error: dict[str, str] | None = None
    ) -> bytes:
        is_done = status in ("completed", "incomplete")
        output = [self._item(item, _status(item)) for item in self._items.items if is_done]
        now = {
            "id": self._id,
            "created_at": self._created_at,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": error,
            "incomplete_details": self._end[1] if is_done else None,
            "output": output,
            "usage": None if usage is None else _usage(usage),
        }
        return dumps(now)[:-1] + b"," + self._shown[1:]

    def _entries(self, entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        return [
            self._token(entry.token_id, entry.logprob)
            | {"top_logprobs": [self._token(token_id, value) for token_id, value in entry.top]}
            for entry in entries
        ]

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._tokens.chat_name_of(token_id),
            "logprob": max(logprob, -9999.0),
            "bytes": list(self._tokens.bytes_of(token_id)),
        }


def _shown(body: ResponsesBody, model: str) -> bytes:
    """What stays the same in an answer, as a JSON object. It repeats the request, and can be long:
    it is encoded once, while the request is prepared.
    """
    request, chat = body.request, body.chat
    return dumps(
        {
            "object": "response",
            "background": False,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "metadata": body.metadata,
            "model": model,
            "parallel_tool_calls": chat.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": chat.reasoning_effort, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": chat.temperature,
            "text": {"format": request.text.format},
            "tool_choice": body.tool_choice,
            "tools": body.tools.shown(),
            "top_logprobs": request.top_logprobs,
            "top_p": chat.top_p,
            "truncation": request.truncation,
        }
    )


def _status(item: Item) -> str:
    return "incomplete" if item.is_cut else "completed"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
