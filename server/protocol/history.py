"""Chat messages from APIs that take a conversation apart: into items, or into blocks."""

from __future__ import annotations

from typing import Any

from server.protocol.body import field_error
from server.protocol.described import quoted


def arguments_text(text: str | None) -> str:
    """A call's arguments as JSON text; "" and null, which models write too, are no arguments."""
    return "{}" if text is None or text.strip() in ("", "null") else text


class _Texts(list[str]):
    """What becomes one text. Joined once: there can be thousands, or very long ones."""


class History:
    """Collects messages; what the assistant wrote without a break is one message."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._open_calls: dict[str, str] = {}
        self._answered: set[str] = set()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """In chat_messages' form. Reasoning at the end that neither text nor a call follows is left
        out: it is no turn yet."""
        only_reasoning = {"role", "content", "reasoning_content"}
        joined = [
            {key: "\n".join(v) if isinstance(v, _Texts) else v for key, v in message.items()}
            for message in self._messages
        ]
        is_open = joined and joined[-1].keys() == only_reasoning and not joined[-1]["content"]
        return joined[:-1] if is_open else joined

    def say(self, role: str, text: str) -> None:
        """Adds a message of the user or the system."""
        self._open_calls = {}
        self._messages.append({"role": role, "content": text})

    def write(self, text: str) -> None:
        """Adds to what the assistant said."""
        self._append("content", text)

    def think(self, text: str) -> None:
        """Adds to the assistant's reasoning. Templates leave that of former turns out."""
        self._append("reasoning_content", text)

    def call(self, where: str, call_id: str, name: str, arguments: str) -> None:
        """Adds a call of the assistant's.

        Raises:
            RequestError: Naming `where`: the id is that of a call beside it.
        """
        calls = self._assistant().setdefault("tool_calls", [])
        if call_id in self._open_calls:
            raise field_error(where, f"there is a call with the id {quoted(call_id)} already")
        self._open_calls[call_id] = name
        function = {"name": name, "arguments": arguments_text(arguments)}
        calls.append({"id": call_id, "type": "function", "function": function})

    def answer(self, where: str, call_id: str, text: str) -> None:
        """Adds the result of a call.

        Raises:
            RequestError: Naming `where`: there is no such call right before it, or it has a result.
        """
        if call_id not in self._open_calls:
            reason = f"there is no call with the id {quoted(call_id)} right before it"
            raise field_error(where, reason)
        if call_id in self._answered:
            raise field_error(where, f"the call {quoted(call_id)} has a result already")
        self._answered.add(call_id)
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": text})

    def _append(self, key: str, text: str) -> None:
        texts = self._assistant().setdefault(key, _Texts())
        if text:
            texts.append(text)

    def _assistant(self) -> dict[str, Any]:
        """The message that the assistant is at."""
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self._open_calls, self._answered = {}, set()
            self._messages.append({"role": "assistant", "content": _Texts()})
        return self._messages[-1]
