"""`input` of the responses API: items, among them those of former answers, as chat messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server import limits
from server.protocol.body import check_count, describe, field_error
from server.protocol.history import History

# Clients send the items of an answer back with all their fields. These say nothing to the model.
_SILENT = frozenset({"type", "id", "status", "phase", "caller", "namespace", "async"})


def input_messages(instructions: str | None, given: Any) -> list[dict[str, Any]]:
    """The messages that instructions and input mean.

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
        _read(history, f"input[{index}]", item)
    if not history.messages:
        raise field_error("input", "expected at least one message")
    return history.messages


def _read(history: History, where: str, item: Any) -> None:
    if not isinstance(item, dict):
        raise field_error(where, f"expected an object, found {describe(item)}")
    kind = item.get("type") or "message"
    if not isinstance(kind, str) or kind not in _KINDS:
        expected = f"expected one of {', '.join(_KINDS)}"
        raise field_error(f"{where}.type", f"{expected}, found {describe(kind)}")
    fields, add = _KINDS[kind]
    given = {key: value for key, value in item.items() if value is not None}
    for key in given.keys() - _SILENT - fields:
        raise field_error(f"{where}.{key}", "unknown field")
    add(history, where, given)


def _message(history: History, where: str, item: dict[str, Any]) -> None:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise field_error(f"{where}.role", f"unknown role, found {describe(role)}")
    text = _text(f"{where}.content", item.get("content"))
    if role == "assistant":
        history.write(text)
    else:
        history.say(role, text)


def _call(history: History, where: str, item: dict[str, Any]) -> None:
    call_id, name, arguments = (
        _string(where, item, key) for key in ("call_id", "name", "arguments")
    )
    history.call(f"{where}.call_id", call_id, name, arguments)


def _call_output(history: History, where: str, item: dict[str, Any]) -> None:
    text = _text(f"{where}.output", item.get("output"))
    history.answer(f"{where}.call_id", _string(where, item, "call_id"), text)


def _reasoning(history: History, where: str, item: dict[str, Any]) -> None:
    content = item.get("content")
    if content:
        history.think(_text(f"{where}.content", content))


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


# An item's type -> the fields that are read, and how.
_KINDS: dict[str, tuple[frozenset[str], Callable[[History, str, dict[str, Any]], None]]] = {
    "message": (frozenset({"role", "content"}), _message),
    "function_call": (frozenset({"call_id", "name", "arguments"}), _call),
    "function_call_output": (frozenset({"call_id", "output", "name"}), _call_output),
    "reasoning": (frozenset({"summary", "content", "encrypted_content"}), _reasoning),
}
