"""Calls and results of earlier turns, in the form that chat templates take."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

# Such a template looks for a call only in messages whose content is None ...
_WANTS_NONE = re.compile(r"(?<!reasoning_)content(['\"]\s*\])?\s+is\s+(not\s+)?none", re.IGNORECASE)
# ... unless it looks for "", too: Ministral's asks for the length of what is neither.
_TAKES_EMPTY = re.compile(r"content(['\"]\s*\])?\s*[!=]=\s*(''|\"\")")
_OBSERVATION = re.compile(r"==\s*['\"]observation['\"]")
_TOOL = re.compile(r"['\"]tool['\"]")

# Mistral's templates refuse ids that are not nine letters or digits.
_SHORT_IDS = re.compile(r"id\s*\|\s*length\s*!=\s*9")


class Arguments(dict[str, Any]):
    """A call's arguments for templates, which treat them as a mapping or as the JSON text."""

    def __init__(self, text: str, value: dict[str, Any]):
        super().__init__(value)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


class ArgumentsText(str):
    """Arguments that are no JSON object, as a model wrote them: cut, or of another type.

    Templates write them as they are, also where they ask for JSON.
    """

    __slots__ = ()


class ReadArguments(str):
    """Arguments as text, with what they shall be read as."""

    def __new__(cls, text: str, value: dict[str, Any]) -> ReadArguments:
        made = super().__new__(cls, text)
        made.value = value
        return made

    value: dict[str, Any]


def template_messages(messages: Sequence[dict[str, Any]], template: str) -> list[dict[str, Any]]:
    """The messages as a template that knows tools expects them.

    Args:
        messages: In the form of `server.protocol.chat_messages`.
        template: The template's source.
    """
    result_role = "tool"
    if _OBSERVATION.search(template) and not _TOOL.search(template):
        result_role = "observation"
    wants_none = _WANTS_NONE.search(template) and not _TAKES_EMPTY.search(template)
    empty = None if wants_none else ""
    fit = _short if _SHORT_IDS.search(template) else str
    converted = []
    for message in messages:
        if message["role"] == "tool":
            call_id = fit(message["tool_call_id"])
            message = {**message, "role": result_role, "tool_call_id": call_id}
        elif message.get("tool_calls"):
            calls = [
                {**_with_mapping(call), "id": fit(call["id"])} for call in message["tool_calls"]
            ]
            message = {**message, "content": message["content"] or empty, "tool_calls": calls}
        converted.append(message)
    return converted


def _with_mapping(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    text = function["arguments"]
    value = json_object(text)
    arguments = ArgumentsText(text) if value is None else Arguments(str(text), value)
    return {**call, "function": {**function, "arguments": arguments}}


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object in a text; None where it has something else."""
    if isinstance(text, ReadArguments):
        return text.value
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def with_broken_calls_as_text(
    message: dict[str, Any], write: Callable[[str, str], str]
) -> dict[str, Any]:
    """A message whose calls with arguments that are no JSON object stand in its content.

    Args:
        message: Any message.
        write: Makes the text of a call of its function's name and its arguments.
    """
    calls = message.get("tool_calls", [])
    broken = [call for call in calls if json_object(call["function"]["arguments"]) is None]
    if not broken:
        return message
    texts = [write(call["function"]["name"], call["function"]["arguments"]) for call in broken]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    content = "\n".join(filter(None, (message["content"], *texts)))
    sound = [call for call in calls if call not in broken]
    return {**rest, "content": content} | ({"tool_calls": sound} if sound else {})


def _short(call_id: str) -> str:
    """The id, or for one of another server's form nine characters that stand for it."""
    if len(call_id) == 9 and call_id.isascii() and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]
