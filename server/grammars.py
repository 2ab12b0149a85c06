"""What a request says about the form of its output -> the engine's Grammar.

The text is only checked for shape here. The engine compiles it, away from the event loop, and its
errors name the same field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from rtpjax.engine.request import JSON_OPTIONS, Grammar
from server import limits
from server.answer_parser import AnswerSyntax
from server.function_calls import CallOptions
from server.json_schema import normalise
from server.protocol.body import describe, field_error
from server.tool_parsers import DEFAULT, tool_formats

FIELD = "response_format"
CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"


def chat_grammar(
    response_format: Any, calls: CallOptions, syntax: AnswerSyntax | None
) -> Grammar | None:
    """What constrains the answer to a chat request; None if nothing does.

    Args:
        response_format: As the caller sent it.
        calls: What the request says about function calls.
        syntax: How the answer is read. A constraint starts where open reasoning ends; calls that
            the model may but need not make are constrained in the hermes format only.

    Raises:
        RequestError: A schema cannot be used, or a response_format stands beside functions.
    """
    reasoning = None if syntax is None or not syntax.is_reasoning_open else syntax.reasoning
    after = None if reasoning is None else reasoning.marks[-1]
    grammar = response_grammar(response_format, after=after)
    if syntax is None or syntax.tools is None:
        return grammar
    if grammar is not None:
        raise field_error(FIELD, "it cannot be combined with functions that may be called")
    functions = calls.offered
    definitions = [
        f.as_tool if calls.dialect == "tools" else f.as_tool["function"] for f in functions
    ]
    if calls.choice == "required":
        return forced_call_grammar(definitions, calls.named, calls.is_parallel, after=after)
    if CALL_BEGIN in syntax.tools.grammar.marks and syntax.tools == tool_formats()[DEFAULT]:
        return auto_call_grammar(definitions, after=after)
    return None


def response_grammar(value: Any, *, after: str | None = None) -> Grammar | None:
    """The grammar of a request's `response_format`; None for free text.

    Args:
        value: As the caller sent it.
        after: The grammar starts after this text, such as the end of the reasoning.

    Raises:
        RequestError: The type is unknown, or a part is missing or wrong.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise field_error(FIELD, f"expected an object, found {describe(value)}")
    kind = value.get("type")
    if kind == "text":
        return None
    if not isinstance(kind, str) or kind not in _READERS:
        expected = ", ".join(("text", *_READERS))
        raise field_error(f"{FIELD}.type", f"expected one of {expected}, found {describe(kind)}")
    name, text = _READERS[kind](value)
    return Grammar(name, text, after)


def forced_call_grammar(
    tools: Sequence[dict[str, Any]],
    named: str | None = None,
    parallel: bool = True,
    *,
    after: str | None = None,
) -> Grammar:
    """Nothing but calls with arguments that fit their schemas, in the hermes format.

        <tool_call>
        {"name": NAME, "arguments": {...}}
        </tool_call>

    Args:
        tools: OpenAI's `tools` or `functions`, already checked for their shape.
        named: The only function that may be called; None for any of them.
        parallel: Whether several calls may follow each other, a line break between them.
        after: As in response_grammar.

    Raises:
        RequestError: A schema cannot be used, or no function has that name.
    """
    functions = _functions(tools)
    if named is not None:
        functions = [(path, f) for path, f in functions if f["name"] == named]
        if not functions:
            raise field_error("tool_choice", f"there is no function named {named!r}")
    most = limits.MAX_PARALLEL_CALLS - 1 if parallel else 0
    rules = [f'start: call ("\\n" call){{0,{most}}}' if most else "start: call"]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(functions))))
    for i, (path, function) in enumerate(functions):
        begin, schema, end = _call_parts(path, function)
        schema["x-guidance"] = JSON_OPTIONS
        rules.append(f"call_{i}: {json.dumps(begin)} %json {json.dumps(schema)} {json.dumps(end)}")
    return Grammar("lark", "\n".join(rules) + "\n", after, param="tools")


def auto_call_grammar(tools: Sequence[dict[str, Any]], *, after: str | None = None) -> Grammar:
    """Free text, in which each call, once it has opened, is one of a known function that fits.

    Args:
        tools: As in forced_call_grammar.
        after: As in response_grammar.

    Raises:
        RequestError: A schema cannot be used.
    """
    tags = []
    for path, function in _functions(tools):
        begin, schema, end = _call_parts(path, function)
        tags.append({"trigger": CALL_BEGIN, "begin": begin, "schema": schema, "end": end})
    return Grammar("structural_tag", json.dumps(tags), after, param="tools")


def _functions(tools: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The functions with their paths in the request."""
    return [
        (f"tools[{i}].function", tool["function"])
        if "function" in tool
        else (f"functions[{i}]", tool)
        for i, tool in enumerate(tools)
    ]


def _call_parts(path: str, function: dict[str, Any]) -> tuple[str, dict[str, Any], str]:
    """What stands before the arguments, their schema, and what stands after them."""
    schema = normalise(function.get("parameters") or {}, f"{path}.parameters")
    if not schema:  # no parameters
        schema = {"properties": {}, "additionalProperties": False}
    schema.setdefault("type", "object")
    name = json.dumps(function["name"], ensure_ascii=False)
    begin = f'{CALL_BEGIN}\n{{"name": {name}, "arguments": '
    return begin, schema, f"}}\n{CALL_END}"


def _json_object(value: dict[str, Any]) -> tuple[Any, str]:
    if "schema" not in value:
        return "json_object", ""
    return "json_schema", json.dumps(normalise(value["schema"], f"{FIELD}.schema"))


def _json_schema(value: dict[str, Any]) -> tuple[Any, str]:
    path = f"{FIELD}.json_schema"
    given = value.get("json_schema")
    if not isinstance(given, dict):
        raise field_error(path, f"expected an object, found {describe(given)}")
    is_strict = given.get("strict")
    if is_strict not in (None, True, False):
        raise field_error(f"{path}.strict", f"expected a boolean, found {describe(is_strict)}")
    if "schema" not in given:
        raise field_error(f"{path}.schema", "this field is required")
    schema = normalise(given["schema"], f"{path}.schema")
    if not is_strict:
        # As at OpenAI, the answer then follows the schema as far as can be enforced.
        schema["x-guidance"] = {"lenient": True, "coerce_one_of": True}
    return "json_schema", json.dumps(schema)


def _text_reader(kind: str, *names: str) -> Callable[[dict[str, Any]], tuple[Any, str]]:
    """Reads a type that is one text, under the first of the names that is given."""

    def read(value: dict[str, Any]) -> tuple[Any, str]:
        name = next((n for n in names if n in value), names[0])
        text = value.get(name)
        if not isinstance(text, str) or not text:
            raise field_error(f"{FIELD}.{name}", f"expected a string, found {describe(text)}")
        return kind, text

    return read


def _structural_tag(value: dict[str, Any]) -> tuple[Any, str]:
    triggers, structures = value.get("triggers"), value.get("structures")
    if not isinstance(triggers, list) or not all(isinstance(t, str) and t for t in triggers):
        raise field_error(f"{FIELD}.triggers", "expected a list of strings")
    if not isinstance(structures, list) or not structures:
        raise field_error(f"{FIELD}.structures", f"expected a list, found {describe(structures)}")
    return "structural_tag", json.dumps([_tag(s, i, triggers) for i, s in enumerate(structures)])


def _tag(structure: Any, index: int, triggers: list[str]) -> dict[str, Any]:
    path = f"{FIELD}.structures[{index}]"
    if not isinstance(structure, dict):
        raise field_error(path, f"expected an object, found {describe(structure)}")
    begin, end = structure.get("begin"), structure.get("end", "")
    if not isinstance(begin, str) or not isinstance(end, str):
        raise field_error(path, "begin and end must be strings")
    trigger = next((t for t in triggers if begin.startswith(t)), None)
    if trigger is None:
        raise field_error(f"{path}.begin", "it starts with none of the triggers")
    schema = normalise(structure.get("schema", {}), f"{path}.schema")
    return {"trigger": trigger, "begin": begin, "schema": schema, "end": end}


_READERS: dict[str, Callable[[dict[str, Any]], tuple[Any, str]]] = {
    "json_object": _json_object,
    "json_schema": _json_schema,
    "regex": _text_reader("regex", "regex", "pattern"),
    "ebnf": _text_reader("ebnf", "ebnf", "grammar"),
    "lark": _text_reader("lark", "lark", "grammar"),
    "structural_tag": _structural_tag,
}
