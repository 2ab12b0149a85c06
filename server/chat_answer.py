"""Answers of the chat API: `chat.completion` and its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rtpjax.engine.request import TokenLogprob
from server.answer import NULL, Envelope, dumps
from server.function_calls import CallOptions
from server.output import Choice, Delta, Usage
from server.parsing.events import Content, Event, Reasoning, ToolCallArguments, ToolCallStart
from server.token_text import TokenText


class ChatAnswer:
    """Implements AnswerFormat. Chunks are joined from bytes: this is the path of every token."""

    def __init__(
        self,
        model: str,
        tokens: TokenText,
        *,
        with_usage: bool,
        fingerprint: str = "",
        usage_so_far: Usage | None = None,
        calls: CallOptions | None = None,
    ):
        self._tokens = tokens
        calls = calls or CallOptions()
        self._dialect = calls.dialect
        self._is_forced = calls.choice == "required"
        self._chunk = Envelope(
            "chatcmpl",
            "chat.completion.chunk",
            model,
            with_usage=with_usage,
            fingerprint=fingerprint,
            usage_so_far=usage_so_far,
        )

    @property
    def id(self) -> str:
        return self._chunk.fields["id"]

    def first(self, index: int) -> bytes | None:
        return self._event(index, b'{"role":"assistant","content":""}', NULL, NULL)

    def delta(self, delta: Delta) -> bytes:
        finish = NULL if delta.finish_reason is None else dumps(delta.finish_reason)
        logprobs = NULL if delta.logprobs is None else dumps(self._logprobs(delta.logprobs))
        changes: list[bytes] = []
        if delta.events is not None:
            changes = [dumps(self._change(event)) for event in delta.events]
        elif delta.finish_reason is None or delta.text or delta.logprobs:
            changes = [b'{"content":' + dumps(delta.text) + b"}"]
        if delta.logprobs and not changes:
            changes = [b"{}"]  # the text of these tokens is held back
        chunks = []
        for change in changes:
            chunks.append(self._event(delta.index, change, logprobs, NULL))
            logprobs = NULL
        if delta.finish_reason is not None:
            chunks.append(self._event(delta.index, b"{}", NULL, finish))
        return b"".join(chunks)

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
            "message": {"role": "assistant", **self._message(choice)},
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }

    def _message(self, choice: Choice) -> dict[str, Any]:
        message = choice.message
        if message is None:
            return {"content": choice.text}
        fields: dict[str, Any] = {"content": message.content}
        if message.reasoning:
            fields |= _reasoning(message.reasoning)
        if not message.content and (message.calls or message.reasoning or self._is_forced):
            fields["content"] = None
        calls = [{"name": call.name, "arguments": call.arguments} for call in message.calls]
        if calls and self._dialect == "functions":
            fields["function_call"] = calls[0]
        elif calls:
            fields["tool_calls"] = [
                {"id": call.id, "type": "function", "function": function}
                for call, function in zip(message.calls, calls, strict=True)
            ]
        return fields

    def _change(self, event: Event) -> dict[str, Any]:
        """What an event adds to the message, as a chunk's delta."""
        match event:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return _reasoning(text)
            case ToolCallStart(index, call_id, name):
                head = {"index": index, "id": call_id, "type": "function"}
                return self._call_change(head, {"name": name, "arguments": ""})
            case ToolCallArguments(index, fragment):
                return self._call_change({"index": index}, {"arguments": fragment})

    def _call_change(self, head: dict[str, Any], function: dict[str, Any]) -> dict[str, Any]:
        if self._dialect == "functions":
            return {"function_call": function}
        return {"tool_calls": [{**head, "function": function}]}

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
            "token": self._tokens.chat_name_of(token_id),
            "logprob": max(logprob, -9999.0),  # JSON has no -Infinity; OpenAI's own floor
            "bytes": list(self._tokens.bytes_of(token_id)),
        }


def _reasoning(text: str) -> dict[str, Any]:
    # Two names are in use for it, and clients know one of them.
    return {"reasoning_content": text, "reasoning": text}
