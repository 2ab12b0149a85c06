"""The messages of a conversation, checked and brought into one form.

{"role": "system" | "user" | "assistant" | "tool", "content": str}, and where they have them
"name", "reasoning_content", "tool_calls" (OpenAI's form, arguments as text) and "tool_call_id".
The legacy `function_call` is a list of one call; `function` and `observation` are roles of results.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from server import limits
from server.protocol.body import check_count, describe, field_error, field_path
from server.protocol.described import quoted
from server.protocol.history import arguments_text

# OpenAI renamed `system`; templates know the old name only.
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}

# Clients append the assistant message they got, with all its keys. These do not reach the prompt.
_IGNORED_IN_MESSAGE = frozenset({"refusal", "annotations"})
_NO_CALL = (
    "a function's result without a call before it: put the assistant's message with the call "
    "before it (after a text, role 'function' with one of the request's names)"
)
_TEXT_IN_MESSAGE = ("name", "reasoning_content", "reasoning", "tool_call_id")


def checked_messages(
    values: Sequence[Any], functions: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Every message in the form above.

    Args:
        values: The messages as they came.
        functions: Names of the functions that the request describes.

    Raises:
        RequestError: A message is malformed, or a result has no call that it belongs to.
    """
    messages = [_message(index, value) for index, value in enumerate(values)]
    _add_unasked_calls(messages, [value["role"] for value in values], frozenset(functions))
    _match_results(messages)
    return messages


def _message(index: int, value: Any) -> dict[str, Any]:
    where = field_path(("messages", index))
    if not isinstance(value, dict):
        raise field_error(f"{where}", f"expected an object, found {describe(value)}")
    given = {key: field for key, field in value.items() if field is not None}
    role = _role(where, given)
    calls = _calls(where, index, given)
    if calls and role != "assistant":
        raise field_error(f"{where}.role", "only the assistant makes calls")
    if role == "assistant":
        # Of an answer that was cut inside its reasoning, many clients send back nothing at all.
        given.setdefault("content", "")
    message: dict[str, Any] = {"role": role, "content": _content(where, given)}
    for key in given.keys() - {"role", "content"} - _IGNORED_IN_MESSAGE:
        _check_extra(where, key, given[key])
    for key in _TEXT_IN_MESSAGE:
        if given.get(key):
            message["reasoning_content" if key == "reasoning" else key] = given[key]
    if calls:
        message["tool_calls"] = calls
    return message


def _add_unasked_calls(
    messages: list[dict[str, Any]], roles: Sequence[str], functions: frozenset[str]
) -> None:
    """Gives an answer in plain text the calls whose results follow it.

    So the guide's script goes on also where the model answered without a call: the script calls the
    function all the same. The result's name is all that says which; its arguments are not known.
    """
    answer: dict[str, Any] | None = None
    for index, (message, role) in enumerate(zip(messages, roles, strict=True)):
        if message["role"] != "tool":
            is_plain = role == "assistant" and not message.get("tool_calls")
            answer = message if is_plain else None
        elif answer is not None and role == "function" and message.get("name") in functions:
            where = field_path(("messages", index))
            call = _call(where, f"call{index:05d}", {"name": message["name"], "arguments": "{}"})
            answer.setdefault("tool_calls", []).append(call)


def _match_results(messages: list[dict[str, Any]]) -> None:
    """Gives every result the id and the name of its call."""
    calls = OpenCalls(())
    for index, message in enumerate(messages):
        if message["role"] != "tool":
            calls = OpenCalls(message.get("tool_calls", ()))
            continue
        where = field_path(("messages", index))
        if not calls.names:
            raise field_error(f"{where}.role", _NO_CALL)
        call_id = message.get("tool_call_id")
        if call_id is None:
            call_id = calls.meant_by(message.get("name"))
        elif call_id not in calls.names:
            reason = f"no call before it has the id {quoted(call_id)}"
            raise field_error(f"{where}.tool_call_id", reason)
        calls.answer(call_id)
        message["tool_call_id"] = call_id
        message.setdefault("name", calls.names[call_id])


class OpenCalls:
    """The calls of one message, and which of them wait for a result.

    Attributes:
        names: Of their functions, by id.
    """

    def __init__(self, calls: Iterable[dict[str, Any]]):
        self.names: dict[str, str] = {call["id"]: call["function"]["name"] for call in calls}
        # Ordered dicts find their first key at once also after many were taken out.
        self._waiting = OrderedDict.fromkeys(self.names)
        self._by_name: dict[str, OrderedDict[str, None]] = {}
        self._first: dict[str, str] = {}
        for call_id, name in self.names.items():
            self._by_name.setdefault(name, OrderedDict())[call_id] = None
            self._first.setdefault(name, call_id)

    def meant_by(self, name: str | None) -> str:
        """The id of the call that a result without one belongs to: the first that waits, one of the
        function that the result names if there is one.
        """
        if not self._waiting:
            return self._first.get(name or "") or next(iter(self.names))
        return next(iter(self._by_name.get(name or "") or self._waiting))

    def answer(self, call_id: str) -> None:
        """The call has a result."""
        if call_id in self._waiting:
            del self._waiting[call_id]
            del self._by_name[self.names[call_id]][call_id]


def _role(where: str, given: dict[str, Any]) -> str:
    if "role" not in given:
        raise field_error(f"{where}.role", "this field is required")
    role = given["role"]
    if not isinstance(role, str) or role not in _ROLES:
        expected = ", ".join(_ROLES)
        raise field_error(f"{where}.role", f"expected one of {expected}, found {describe(role)}")
    return _ROLES[role]


def _calls(where: str, index: int, given: dict[str, Any]) -> list[dict[str, Any]]:
    legacy, calls = given.get("function_call"), given.get("tool_calls") or []
    if not isinstance(calls, list):
        raise field_error(f"{where}.tool_calls", f"expected a list, found {describe(calls)}")
    if not calls and legacy:
        # (Mistral's templates accept ids of nine letters and digits only.)
        return [_call(f"{where}.function_call", f"call{index:05d}", legacy)]
    check_count(f"{where}.tool_calls", calls, limits.MAX_CALLS_PER_MESSAGE, "calls")
    checked: dict[str, dict[str, Any]] = {}
    for number, call in enumerate(calls):
        at = f"{where}.tool_calls[{number}]"
        if not isinstance(call, dict):
            raise field_error(at, f"expected an object, found {describe(call)}")
        if call.get("type") not in (None, "function"):
            raise field_error(f"{at}.type", f"expected 'function', found {describe(call['type'])}")
        call_id = call.get("id") or f"call{index:03d}{number:02d}"
        if not isinstance(call_id, str):
            raise field_error(f"{at}.id", f"expected a string, found {describe(call_id)}")
        if call_id in checked:
            raise field_error(f"{at}.id", f"there is a call with the id {quoted(call_id)} already")
        checked[call_id] = _call(f"{at}.function", call_id, call.get("function"))
    return list(checked.values())


def _call(where: str, call_id: str, function: Any) -> dict[str, Any]:
    if not isinstance(function, dict):
        raise field_error(where, f"expected an object, found {describe(function)}")
    name, arguments = function.get("name"), function.get("arguments")
    if not (isinstance(name, str) and name):
        raise field_error(f"{where}.name", f"expected a string, found {describe(name)}")
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str | None):
        reason = f"expected JSON in a string, found {describe(arguments)}"
        raise field_error(f"{where}.arguments", reason)
    function = {"name": name, "arguments": arguments_text(arguments)}
    return {"id": call_id, "type": "function", "function": function}


def _content(where: str, given: dict[str, Any]) -> str:
    if "content" not in given:
        raise field_error(f"{where}.content", "this field is required")
    content = given["content"]
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        expected = "expected a string or a list of text parts"
        raise field_error(f"{where}.content", f"{expected}, found {describe(content)}")
    check_count(f"{where}.content", content, limits.MAX_PARTS, "parts")
    parts = [_text_part(f"{where}.content[{i}]", part) for i, part in enumerate(content)]
    return "\n".join(parts)


def _text_part(where: str, part: Any) -> str:
    if not isinstance(part, dict):
        raise field_error(f"{where}", f"expected an object, found {describe(part)}")
    kind = part.get("type")
    if kind not in ("text", "refusal"):
        reason = f"only 'text' parts are supported, found {describe(kind)}"
        raise field_error(f"{where}.type", reason)
    text = part.get(kind)
    if not isinstance(text, str):
        raise field_error(f"{where}.{kind}", f"expected a string, found {describe(text)}")
    return text


def _check_extra(where: str, key: str, value: Any) -> None:
    if key in _TEXT_IN_MESSAGE:
        if not isinstance(value, str):
            raise field_error(f"{where}.{key}", f"expected a string, found {describe(value)}")
    elif key == "audio":
        raise field_error(f"{where}.audio", "only text is supported")
    elif key not in ("tool_calls", "function_call"):  # checked before
        raise field_error(f"{where}.{key}", "unknown field")
