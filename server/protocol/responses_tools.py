"""`tools` and `tool_choice` of the responses API, as those of the chat API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from server import limits
from server.protocol.body import check_count, describe, field_error
from server.protocol.described import quoted
from server.protocol.fields import LEFT_OUT


@dataclass(slots=True)
class NamedTools:
    """The functions of a request, those in namespaces too, as chat's tools.

    The model knows no namespaces: a function of a namespace whose name another function has as well
    is called `namespace__name` there. Callers see the two apart, as they wrote them.

    Attributes:
        chat_tools: In the order of the request.
        places: Patterns for how chat's errors call them, and how the request does.
        names: What the model calls those in namespaces, and the fields that name them in an item.
    """

    chat_tools: list[Any] = field(default_factory=list)
    places: list[tuple[str, str]] = field(default_factory=list)
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    _called: dict[tuple[str | None, Any], str] = field(default_factory=dict)

    def add(
        self, where: str, function: dict[str, Any], namespace: str | None, *, is_alone: bool
    ) -> None:
        """Takes in the next function; `is_alone` if no other one has its name."""
        name = function.get("name")
        if namespace is not None and isinstance(name, str):
            called = name if is_alone else f"{namespace}__{name}"
            self._called[namespace, name] = called
            self.names[called] = {"name": name, "namespace": namespace}
            function = function | {"name": called}
        self.places.append((rf"tools\[{len(self.chat_tools)}\]\.function", where))
        self.chat_tools.append({"type": "function", "function": function})

    def called(self, name: str, namespace: str | None) -> str:
        """What the model calls the function of an item."""
        return self._called.get((namespace, name), name)

    def shown(self) -> list[dict[str, Any]]:
        """The tools as an answer repeats them."""
        defaults = {"type": "function", "description": None, "parameters": None, "strict": True}
        functions = [tool["function"] for tool in self.chat_tools]
        return [{**defaults, **each, **self.names.get(each["name"], {})} for each in functions]


def named_tools(tools: Any) -> NamedTools:
    """The tools, whose fields stand beside their `type` here.

    Raises:
        RequestError: A tool is malformed.
    """
    functions = list(_functions("tools", tools))
    names = [function.get("name") for _, function, _ in functions]
    counts = Counter(name for name in names if isinstance(name, str))
    found = NamedTools()
    for (where, function, namespace), name in zip(functions, names, strict=True):
        is_alone = isinstance(name, str) and counts[name] == 1
        found.add(where, function, namespace, is_alone=is_alone)
    found.places.append((r"tool_choice\.function", "tool_choice"))
    return found


def _functions(
    where: str, tools: Any, namespace: str | None = None
) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """The path of each function, the function with chat's fields, and its namespace."""
    if not isinstance(tools, list):
        raise field_error(where, f"expected a list, found {describe(tools)}")
    check_count(where, tools, limits.MAX_FUNCTIONS, "tools")
    for index, tool in enumerate(tools):
        at = f"{where}[{index}]"
        if tool is LEFT_OUT:
            continue
        if not isinstance(tool, dict):
            raise field_error(at, f"expected an object, found {describe(tool)}")
        kind = tool.get("type")
        if kind == "namespace":
            name = tool.get("name")
            if not (isinstance(name, str) and name):
                raise field_error(f"{at}.name", f"expected a string, found {describe(name)}")
            yield from _functions(f"{at}.tools", tool.get("tools"), name)
        elif kind == "function":
            yield at, _function(at, tool), namespace
        else:
            raise field_error(f"{at}.type", f"expected a string, found {describe(kind)}")


def _function(where: str, tool: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(tool.get("strict", True), bool):
        reason = f"expected true or false, found {describe(tool['strict'])}"
        raise field_error(f"{where}.strict", reason)
    # In the caller's order: it is that of the prompt.
    return {key: value for key, value in tool.items() if key != "type"}


def chat_choice(choice: Any, tools: list[Any]) -> tuple[Any, list[Any]]:
    """The choice as chat's, and the tools, of which those that are not allowed are left out.

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


def _allowed(choice: dict[str, Any], tools: list[Any]) -> tuple[str, list[Any]]:
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
        if isinstance(tool, dict) and tool.get("type", "function") != "function":
            continue  # of a kind that is left out among the tools
        name = _name_of(tool)
        if not name or name not in names:
            given = tool.get("name") if isinstance(tool, dict) else None
            reason = f"there is no function {quoted(given)} in the request"
            raise field_error(f"tool_choice.tools[{index}].name", reason)
        wanted.add(name)
    return mode, [tool if _name_of(tool["function"]) in wanted else LEFT_OUT for tool in tools]


def _name_of(function: Any) -> str:
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""
