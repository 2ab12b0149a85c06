"""Calls for chat templates that know none: a system text asks for them in the hermes format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from server.function_calls import Function

_TOOLS = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>"""

_FORMAT = """

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


# What is written around calls and results.
TEXTS = (_TOOLS, _FORMAT, "<tool_response>\n", "\n</tool_response>")


def system_text(functions: Sequence[Function], *, teaches_format: bool = True) -> str:
    """What the model is told of its functions."""
    tools = "\n".join(json.dumps(f.as_tool, ensure_ascii=False) for f in functions)
    return _TOOLS.format(tools=tools) + (_FORMAT if teaches_format else "")


def with_text(messages: list[dict[str, Any]], text: str, *, has_system: bool) -> list[dict]:
    """The messages with a text for the system; without such a role it begins the first message."""
    first = messages[0]
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{text}".lstrip()}, *messages[1:]]
    if has_system:
        return [{"role": "system", "content": text}, *messages]
    return [{**first, "content": f"{text}\n\n{first['content']}"}, *messages[1:]]


def plain_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls and results as text of assistant and user; neighbouring results are one turn."""
    plain: list[dict[str, Any]] = []
    texts: list[str] = []  # of the turn that results are at
    previous = ""
    for message in messages:
        role = message["role"]
        if role == "tool":
            content = f"<tool_response>\n{message['content']}\n</tool_response>"
            message = {"role": "user", "content": content}
        message = with_calls_as_text(message)
        if not (previous == "tool" and message["role"] == "user"):
            _join(plain, texts)
            plain.append(message)
        texts.append(message["content"])
        previous = role
    _join(plain, texts)
    return plain


def _join(plain: list[dict[str, Any]], texts: list[str]) -> None:
    """Puts the texts of a turn into it."""
    if len(texts) > 1:
        plain[-1] = {**plain[-1], "content": "\n".join(texts)}
    texts.clear()


def with_calls_as_text(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose calls stand in its content."""
    if not message.get("tool_calls"):
        return message
    texts = [message["content"], *map(_call_text, message["tool_calls"])]
    rest = {k: v for k, v in message.items() if k != "tool_calls"}
    return {**rest, "content": "\n".join(filter(None, texts))}


def _call_text(call: dict[str, Any]) -> str:
    name, arguments = call["function"]["name"], call["function"]["arguments"] or "{}"
    quoted = json.dumps(name, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {quoted}, "arguments": {arguments}}}\n</tool_call>'
