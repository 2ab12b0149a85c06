"""`tools` and `tool_choice` of Anthropic's API, as those of the chat API."""

from __future__ import annotations

from typing import Any

from server import limits
from server.protocol.body import check_count, describe, field_error

# Errors name the caller's fields.
NAMES = (
    (r"tools\[(\d+)\]\.function\.parameters", r"tools[\1].input_schema"),
    (r"tools\[(\d+)\]\.function", r"tools[\1]"),
    (r"tool_choice\.function", "tool_choice"),
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# Arguments stream as they are written anyhow.
_SILENT = frozenset({"type", "cache_control", "eager_input_streaming"})
_NEUTRAL = {"allowed_callers": ["direct"], "defer_loading": False, "input_examples": []}


def chat_tools(tools: Any) -> list[dict[str, Any]]:
    """The tools as chat's.

    Raises:
        RequestError: A tool is malformed, or one of Anthropic's servers.
    """
    if not isinstance(tools, list):
        raise field_error("tools", f"expected a list, found {describe(tools)}")
    check_count("tools", tools, limits.MAX_FUNCTIONS, "tools")
    return [_tool(f"tools[{index}]", tool) for index, tool in enumerate(tools)]


def _tool(where: str, tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise field_error(where, f"expected an object, found {describe(tool)}")
    given = {key: value for key, value in tool.items() if value is not None}
    if given.get("type", "custom") != "custom":
        reason = f"only tools of your own can be called, found {describe(given['type'])}"
        raise field_error(f"{where}.type", reason)
    for key in given.keys() - _SILENT - {"name", "description", "input_schema", "strict"}:
        if key not in _NEUTRAL or given[key] != _NEUTRAL[key]:
            raise field_error(f"{where}.{key}", "not supported here")
    if "input_schema" not in given:
        raise field_error(f"{where}.input_schema", "this field is required")
    function = {key: given[key] for key in ("name", "description") if key in given}
    if given.get("strict"):
        function["strict"] = given["strict"]
    return {"type": "function", "function": function | {"parameters": given["input_schema"]}}


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
