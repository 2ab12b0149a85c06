"""`input` of the responses API: items, among them those of former answers, as chat messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server import limits
from server.protocol.body import check_count, describe, field_error
from server.protocol.history import History
from server.protocol.responses_tools import NamedTools


def input_messages(instructions: str | None, given: Any, tools: NamedTools) -> list[dict[str, Any]]:
    """The messages that instructions and input mean.

    Args:
        instructions: Of the request.
        given: Its input: a text, or items with their honoured fields only (`shapes.ITEMS`).
        tools: What the model calls functions.

    Raises:
        RequestError: An item is malformed, or a call's output has no call that it belongs to.
    """
    history = History()
    if instructions is not None:
        history.say("system", instructions)
    if isinstance(given, str):
        history.say("user", given)
        return history.messages
    if not isinstance(given, list) or len(given) > limits.MAX_MESSAGES:
        expected = f"expected a string or at most {limits.MAX_MESSAGES} items"
        raise field_error("input", f"{expected}, found {describe(given)}")
    for index, item in enumerate(given):
        _read(history, f"input[{index}]", item, tools)
    if not history.messages:
        raise field_error("input", "expected at least one message")
    return history.messages


def _read(history: History, where: str, item: Any, tools: NamedTools) -> None:
    if not isinstance(item, dict):
        raise field_error(where, f"expected an object, found {describe(item)}")
    kind = item.get("type") or "message"
    if not isinstance(kind, str) or kind not in _KINDS:
        expected = f"expected one of {', '.join(_KINDS)}"
        raise field_error(f"{where}.type", f"{expected}, found {describe(kind)}")
    _KINDS[kind](history, where, item, tools)


def _message(history: History, where: str, item: dict[str, Any], _tools: NamedTools) -> None:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise field_error(f"{where}.role", f"unknown role, found {describe(role)}")
    content = item.get("content", "" if role == "assistant" else None)
    text = _text(f"{where}.content", content)
    if role == "assistant":
        history.write(text)
    else:
        history.say(role, text)


def _call(history: History, where: str, item: dict[str, Any], tools: NamedTools) -> None:
    call_id, name = (_string(where, item, key) for key in ("call_id", "name"))
    arguments = _string(where, {"arguments": "", **item}, "arguments")
    namespace = item.get("namespace")
    called = tools.called(name, namespace if isinstance(namespace, str) else None)
    history.call(f"{where}.call_id", call_id, called, arguments)


def _call_output(history: History, where: str, item: dict[str, Any], _tools: NamedTools) -> None:
    text = _text(f"{where}.output", item.get("output"))
    history.answer(f"{where}.call_id", _string(where, item, "call_id"), text)


def _reasoning(history: History, where: str, item: dict[str, Any], _tools: NamedTools) -> None:
    # (A client may have kept the item without its text: it was the assistant's turn all the same.)
    history.think(_text(f"{where}.content", item.get("content") or ""))


def _string(where: str, item: dict[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not (value or key == "arguments"):
        raise field_error(f"{where}.{key}", f"expected a string, found {describe(value)}")
    return value


def _text(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        expected = "expected a string or a list of text parts"
        raise field_error(where, f"{expected}, found {describe(content)}")
    check_count(where, content, limits.MAX_PARTS, "parts")
    return "\n".join(_part(f"{where}[{index}]", part) for index, part in enumerate(content))


def _part(where: str, part: Any) -> str:
    if not isinstance(part, dict):
        raise field_error(where, f"expected an object, found {describe(part)}")
    kind = part.get("type")
    if kind not in ("input_text", "output_text", "reasoning_text", "text", "refusal"):
        raise field_error(f"{where}.type", f"only text is supported, found {describe(kind)}")
    text = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        raise field_error(f"{where}.text", f"expected a string, found {describe(text)}")
    return text


# An item's type -> how it is read.
_KINDS: dict[str, Callable[[History, str, dict[str, Any], NamedTools], None]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _call_output,
    "reasoning": _reasoning,
}
