"""`tools` and `tool_choice`, or the legacy `functions` and `function_call` -> CallOptions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from server import limits
from server.function_calls import CallOptions, Function
from server.protocol.body import check_count, describe, field_error
from server.protocol.described import quoted
from server.protocol.fields import LEFT_OUT

_NAME = re.compile(r"[\w.:/-]{1,128}")


def call_options(
    *, tools: Any, tool_choice: Any, functions: Any, function_call: Any, is_parallel: bool | None
) -> CallOptions:
    """Checks what a request says about calls; None is a field that is absent.

    Raises:
        RequestError: A field is malformed, or contradicts another one.
    """
    if tools and functions:
        raise field_error("functions", "not allowed together with tools, which replaced it")
    if tool_choice is not None and functions:
        raise field_error("tool_choice", "functions are chosen with function_call")
    if function_call is not None and tools:
        raise field_error("function_call", "tools are chosen with tool_choice")
    if functions or function_call is not None:
        offered = _functions("functions", functions or [], _function)
        choice, named = _function_call(function_call)
        field, dialect = "function_call", "functions"
    else:
        offered = _functions("tools", tools or [], _tool)
        if isinstance(tool_choice, dict) and tool_choice.get("type") == "allowed_tools":
            tool_choice, offered = _allowed(tool_choice.get("allowed_tools"), offered)
        choice, named = _tool_choice(tool_choice)
        field, dialect = "tool_choice", "tools"
    if choice == "required" and not offered:
        raise field_error(field, "a call is asked for, but there are no functions to call")
    if named is not None and named not in [function.name for function in offered]:
        raise field_error(field, f"there is no function {quoted(named)} in the request")
    return CallOptions(offered, choice, named, is_parallel, dialect)


def _functions(field: str, entries: Any, check: Any) -> tuple[Function, ...]:
    if not isinstance(entries, list):
        raise field_error(field, f"expected a list, found {describe(entries)}")
    check_count(field, entries, limits.MAX_FUNCTIONS, "functions")
    found: dict[str, Function] = {}
    for index, entry in enumerate(entries):
        if entry is LEFT_OUT:
            continue
        where, function = check(f"{field}[{index}]", entry)
        if function.name in found:
            raise field_error(
                f"{where}.name", f"there is a function {quoted(function.name)} already"
            )
        found[function.name] = function
    return tuple(_sized(field, found.values()))


def _tool(where: str, entry: Any) -> tuple[str, Function]:
    _check_object(where, entry)
    if entry.get("type", "function") != "function":
        reason = f"only 'function' is supported, found {describe(entry['type'])}"
        raise field_error(f"{where}.type", reason)
    if "function" not in entry:
        raise field_error(f"{where}.function", "this field is required")
    return _function(f"{where}.function", entry["function"])


def _function(where: str, entry: Any) -> tuple[str, Function]:
    _check_object(where, entry)
    name = entry.get("name")
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        reason = "expected up to 128 letters, digits and any of _ - . : /"
        raise field_error(f"{where}.name", f"{reason}, found {describe(name)}")
    if not isinstance(entry.get("description") or "", str):
        reason = f"expected a string, found {describe(entry['description'])}"
        raise field_error(f"{where}.description", reason)
    parameters = entry.get("parameters")
    if parameters is not None:
        _check_object(f"{where}.parameters", parameters)
    if not isinstance(entry.get("strict") or False, bool):
        reason = f"expected true or false, found {describe(entry['strict'])}"
        raise field_error(f"{where}.strict", reason)
    return where, Function({key: value for key, value in entry.items() if value is not None})


def _sized(field: str, functions: Iterable[Function]) -> list[Function]:
    """The functions without what is too deep to be copied and rendered.

    Raises:
        RequestError: Their parameters are too large, all together.
    """
    num_values, sized = 0, []
    for function in functions:
        level: list[Any] = [function.parameters]
        for _ in range(limits.MAX_PARAMETERS_DEPTH):
            inner = [v.values() if isinstance(v, dict) else v for v in level]
            num_values += sum(map(len, inner))
            level = [x for values in inner for x in values if isinstance(x, dict | list)]
        if level:
            parameters = _shallow(function.parameters, limits.MAX_PARAMETERS_DEPTH)
            function = Function({**function.definition, "parameters": parameters})
        sized.append(function)
    if num_values > limits.MAX_TOOL_VALUES:
        reason = f"their parameters have {num_values} values, at most {limits.MAX_TOOL_VALUES}"
        raise field_error(field, f"{reason} are allowed; offer fewer functions")
    return sized


def _shallow(value: Any, depth: int) -> Any:
    """A copy that is cut off below a depth."""
    if not isinstance(value, dict | list):
        return value
    if not depth:
        return type(value)()
    if isinstance(value, dict):
        return {key: _shallow(part, depth - 1) for key, part in value.items()}
    return [_shallow(part, depth - 1) for part in value]


def _allowed(value: Any, offered: tuple[Function, ...]) -> tuple[str, tuple[Function, ...]]:
    """The mode of a choice among some of the functions, and those."""
    where = "tool_choice.allowed_tools"
    _check_object(where, value)
    mode, allowed = value.get("mode"), value.get("tools")
    if mode not in ("auto", "required"):
        reason = f"expected 'auto' or 'required', found {describe(mode)}"
        raise field_error(f"{where}.mode", reason)
    if not isinstance(allowed, list):
        raise field_error(f"{where}.tools", f"expected a list, found {describe(allowed)}")
    check_count(f"{where}.tools", allowed, limits.MAX_FUNCTIONS, "tools")
    names = {function.name for function in offered}
    wanted: set[str] = set()
    for index, tool in enumerate(allowed):
        at = f"{where}.tools[{index}]"
        _check_object(at, tool)
        if tool.get("type", "function") != "function":
            continue  # of a kind that is left out among the tools
        _check_object(f"{at}.function", tool.get("function"))
        name = _chosen(f"{at}.function.name", tool["function"])
        if name not in names:
            reason = f"there is no function {describe(name)} in the request"
            raise field_error(f"{at}.function.name", reason)
        wanted.add(name)
    return mode, tuple(function for function in offered if function.name in wanted)


def _tool_choice(value: Any) -> tuple[Any, str | None]:
    if value is None or value in ("none", "auto", "required"):
        return value or "auto", None
    function = value.get("function") if isinstance(value, dict) else None
    if isinstance(function, dict) and value.get("type", "function") == "function":
        return "required", _chosen("tool_choice.function.name", function)
    reason = "expected 'none', 'auto', 'required' or {'type': 'function', 'function': {'name': ..}}"
    raise field_error("tool_choice", f"{reason}, found {describe(value)}")


def _function_call(value: Any) -> tuple[Any, str | None]:
    if value is None or value in ("none", "auto"):
        return value or "auto", None
    if isinstance(value, dict):
        return "required", _chosen("function_call.name", value)
    reason = f"expected 'none', 'auto' or {{'name': ..}}, found {describe(value)}"
    raise field_error("function_call", reason)


def _chosen(where: str, function: dict[str, Any]) -> str:
    if not isinstance(function.get("name"), str):
        raise field_error(where, f"expected a string, found {describe(function.get('name'))}")
    return function["name"]


def _check_object(where: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise field_error(where, f"expected an object, found {describe(value)}")
