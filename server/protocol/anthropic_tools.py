"""`tools` and `tool_choice` of Anthropic's API, as those of the chat API."""

from __future__ import annotations

import json
from typing import Any

from server import limits
from server.protocol.body import check_count, describe, field_error
from server.protocol.fields import LEFT_OUT

# Errors name the caller's fields.
NAMES = (
    (r"tools\[(\d+)\]\.function\.parameters", r"tools[\1].input_schema"),
    (r"tools\[(\d+)\]\.function", r"tools[\1]"),
    (r"tool_choice\.function", "tool_choice"),
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_tools(tools: Any) -> list[Any]:
    """The tools as chat's.

    Raises:
        RequestError: A tool is malformed.
    """
    if not isinstance(tools, list):
        raise field_error("tools", f"expected a list, found {describe(tools)}")
    check_count("tools", tools, limits.MAX_FUNCTIONS, "tools")
    return [_tool(f"tools[{index}]", tool) for index, tool in enumerate(tools)]


def _tool(where: str, tool: Any) -> Any:
    if tool is LEFT_OUT:
        return tool
    if not isinstance(tool, dict):
        raise field_error(where, f"expected an object, found {describe(tool)}")
    if tool.get("type", "custom") != "custom":
        raise field_error(f"{where}.type", f"expected a string, found {describe(tool['type'])}")
    if "input_schema" not in tool:
        raise field_error(f"{where}.input_schema", "this field is required")
    function = {key: tool[key] for key in ("name", "description") if key in tool}
    if tool.get("input_examples"):
        function["description"] = _with_examples(where, tool)
    if tool.get("strict"):
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function | {"parameters": tool["input_schema"]}}


def _with_examples(where: str, tool: dict[str, Any]) -> str:
    """A tool's description and its examples of inputs, for which templates have no other place."""
    description, examples = tool.get("description", ""), tool["input_examples"]
    if not isinstance(description, str):
        reason = f"expected a string, found {describe(description)}"
        raise field_error(f"{where}.description", reason)
    if not isinstance(examples, list):
        reason = f"expected a list, found {describe(examples)}"
        raise field_error(f"{where}.input_examples", reason)
    check_count(f"{where}.input_examples", examples, limits.MAX_EXAMPLES, "examples")
    lines = [description] if description else []
    lines.append("Examples of its input:")
    for index, example in enumerate(examples):
        if not isinstance(example, dict):
            reason = f"expected an object, found {describe(example)}"
            raise field_error(f"{where}.input_examples[{index}]", reason)
        lines.append(json.dumps(example, ensure_ascii=False))
    return "\n".join(lines)


def chat_choice(choice: Any) -> dict[str, Any]:
    """The fields of a chat request that a choice means.

    Raises:
        RequestError: It is malformed.
    """
    if not isinstance(choice, dict):
        raise field_error("tool_choice", f"expected an object, found {describe(choice)}")
    kind = choice.get("type")
    if kind != "tool" and (not isinstance(kind, str) or kind not in _CHOICES):
        reason = f"expected one of auto, any, tool, none, found {describe(kind)}"
        raise field_error("tool_choice.type", reason)
    for key in choice.keys() - {"type", "name", "disable_parallel_tool_use"}:
        raise field_error(f"tool_choice.{key}", "unknown field")
    is_single = choice.get("disable_parallel_tool_use")
    if not isinstance(is_single, bool | None):
        reason = f"expected true or false, found {describe(is_single)}"
        raise field_error("tool_choice.disable_parallel_tool_use", reason)
    wanted: Any = {"type": "function", "function": {"name": choice.get("name")}}
    if kind != "tool":
        wanted = _CHOICES[kind]
    fields: dict[str, Any] = {"tool_choice": wanted}
    return fields if is_single is None else fields | {"parallel_tool_calls": not is_single}
