"""`tools` and `tool_choice` of the responses API, as those of the chat API."""

from __future__ import annotations

from typing import Any

from server import limits
from server.protocol.body import check_count, describe, field_error

# Errors name the caller's fields.
NAMES = (
    (r"tools\[(\d+)\]\.function", r"tools[\1]"),
    (r"tool_choice\.function", "tool_choice"),
)
_FIELDS = frozenset({"type", "name", "description", "parameters", "strict", "output_schema"})
# The model calls directly and has been told of all functions, so these say nothing new.
_NEUTRAL = {"allowed_callers": ["direct"], "defer_loading": False, "async": False}


def chat_tools(tools: Any) -> list[dict[str, Any]]:
    """The tools, whose fields stand beside their `type` here, as chat's.

    Raises:
        RequestError: A tool is malformed, or none that the model can call.
    """
    if not isinstance(tools, list):
        raise field_error("tools", f"expected a list, found {describe(tools)}")
    check_count("tools", tools, limits.MAX_FUNCTIONS, "tools")
    return [_tool(f"tools[{index}]", tool) for index, tool in enumerate(tools)]


def _tool(where: str, tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise field_error(where, f"expected an object, found {describe(tool)}")
    kind = tool.get("type")
    if kind != "function":
        reason = f"only functions can be called, no built-in tools; found {describe(kind)}"
        raise field_error(f"{where}.type", reason)
    given = {key: value for key, value in tool.items() if value is not None}
    for key in given.keys() - _FIELDS:
        if key not in _NEUTRAL or given[key] != _NEUTRAL[key]:
            raise field_error(f"{where}.{key}", "not supported for functions here")
    if not isinstance(given.get("strict", True), bool):
        reason = f"expected true or false, found {describe(given['strict'])}"
        raise field_error(f"{where}.strict", reason)
    # In the caller's order: it is that of the prompt.
    function = {key: given[key] for key in given if key in _FIELDS and key != "type"}
    return {"type": "function", "function": function}


def chat_choice(choice: Any, tools: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
    """The choice as chat's, and the tools that are left to choose from.

    Raises:
        RequestError: It is malformed, or allows a function that is not among the tools.
    """
    if choice is None or isinstance(choice, str):
        return choice, tools
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}, tools
    if kind == "allowed_tools":
        return _allowed(choice, tools)
    expected = "expected 'none', 'auto', 'required', {'type': 'function', 'name': ..} or "
    reason = f"{expected}{{'type': 'allowed_tools', ..}}, found {describe(kind or choice)}"
    raise field_error("tool_choice", reason)


def _allowed(
    choice: dict[str, Any], tools: list[dict[str, Any]]
) -> tuple[str, list[dict[str, Any]]]:
    mode, allowed = choice.get("mode"), choice.get("tools")
    if mode not in ("auto", "required"):
        reason = f"expected 'auto' or 'required', found {describe(mode)}"
        raise field_error("tool_choice.mode", reason)
    if not isinstance(allowed, list):
        raise field_error("tool_choice.tools", f"expected a list, found {describe(allowed)}")
    check_count("tool_choice.tools", allowed, limits.MAX_FUNCTIONS, "tools")
    names = {_name_of(tool["function"]) for tool in tools}
    wanted: set[str] = set()
    for index, tool in enumerate(allowed):
        name = _name_of(tool)
        if not name or name not in names:
            given = tool.get("name") if isinstance(tool, dict) else None
            reason = f"there is no function {describe(given)} in the request"
            raise field_error(f"tool_choice.tools[{index}].name", reason)
        wanted.add(name)
    return mode, [tool for tool in tools if _name_of(tool["function"]) in wanted]


def _name_of(function: Any) -> str:
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def shown_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools as an answer repeats them."""
    defaults = {"type": "function", "description": None, "parameters": None, "strict": True}
    return [defaults | tool["function"] for tool in tools]
