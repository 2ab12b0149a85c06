"""Tools of any schema, nonsense among them, over every API: the other tool is served as ever."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtpjax.engine.grammar_check import byte_matcher, grammar_error
from rtpjax.engine.request import Grammar
from rtpjax.errors import RequestError
from server import limits
from server.chat_template import ChatTemplate
from server.function_calls import CallOptions, Function
from server.function_calls.support import CallSupport
from server.grammars.calls import CallStyle
from server.grammars.chat import chat_grammar
from server.grammars.parameters import NotWritable
from server.grammars.wanted import wanted_grammar
from server.protocol.anthropic_messages import in_our_names, parse_messages
from server.protocol.body import parse_body
from server.protocol.chat import ChatRequest
from server.protocol.responses import parse_responses
from server.tool_parsers import tool_formats
from tests.examples import num_examples
from tests.server.json_schema.any_schema import schemas
from tests.server.json_schema.test_enforce import exists
from tests.server.speaking_engine import TOOL_TEMPLATE

INNOCENT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
GOOD = '<tool_call>\n{"name": "innocent", "arguments": {"n": 1}}\n</tool_call>'
BAD = GOOD.replace("1", '"1"')
USER = [{"role": "user", "content": "hi"}]
SUPPORT = CallSupport(ChatTemplate(TOOL_TEMPLATE, {}, timeout_s=30.0))
APIS = ("chat", "functions", "messages", "responses")
PLACES = {
    "chat": "tools[0].function.parameters",
    "functions": "functions[0].parameters",
    "messages": "tools[0].input_schema",
    "responses": "tools[0].parameters",
}


def grammar_of(api: str, choice: str, schema: Any, **strict: Any) -> Grammar | None:
    """What constrains the answer to a request; errors are in the API's names."""
    functions = [
        {"name": "odd", "parameters": schema, **strict},
        {"name": "innocent", "parameters": INNOCENT},
    ]
    if api == "chat":
        tools = [{"type": "function", "function": function} for function in functions]
        body = {"messages": USER, "tools": tools, "tool_choice": choice}
        return made(parse_body(json.dumps(body).encode(), ChatRequest))
    if api == "functions":
        chosen: Any = {"name": "innocent"} if choice == "required" else choice
        body = {"messages": USER, "functions": functions, "function_call": chosen}
        return made(parse_body(json.dumps(body).encode(), ChatRequest))
    if api == "messages":
        kind = {"auto": "auto", "required": "any", "none": "none"}[choice]
        tools = [
            {"name": f["name"], "input_schema": f["parameters"], **(strict if not i else {})}
            for i, f in enumerate(functions)
        ]
        body = {"messages": USER, "tools": tools, "tool_choice": {"type": kind}, "max_tokens": 9}
        chat = parse_messages(json.dumps(body).encode())
        try:
            return made(chat)
        except RequestError as error:
            raise in_our_names(error) from error
    tools = [{"type": "function", **function} for function in functions]
    body = {"input": "hi", "tools": tools, "tool_choice": choice}
    parsed = parse_responses(json.dumps(body).encode())
    try:
        return made(parsed.chat)
    except RequestError as error:
        raise parsed.in_our_names(error) from error


def made(chat: ChatRequest) -> Grammar | None:
    SUPPORT.render(chat.messages, chat.calls, {})
    syntax = SUPPORT.syntax(chat.calls, "")
    return chat_grammar(wanted_grammar(chat), chat.calls, syntax)


def accepts(grammar: Grammar, text: str) -> bool:
    matcher = byte_matcher(grammar)
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@given(schemas(), st.sampled_from(APIS), st.sampled_from(["auto", "required", "none"]))
@settings(max_examples=num_examples(150))
def test_no_schema_refuses_a_request(schema: Any, api: str, choice: str) -> None:
    if not isinstance(schema, dict):
        schema = {"properties": {"a": schema}}
    grammar = grammar_of(api, choice, schema)
    if choice == "none":
        assert grammar is None
        return
    assert grammar is not None and grammar_error(grammar) is None
    assert accepts(grammar, GOOD)
    assert not accepts(grammar, BAD)
    try:
        strict = grammar_of(api, choice, schema, strict=True)
    except RequestError as error:
        assert error.param is not None
        place = PLACES[api]
        assert error.param.startswith(place)
        exists({"type": None, **schema}, "s" + error.param.removeprefix(place))
        assert str(error).startswith(f"{error.param}: ") and "\n" not in str(error)
    else:
        assert strict == grammar


@given(schemas(), st.sampled_from(sorted(tool_formats())), st.data())
@settings(max_examples=num_examples(150))
def test_no_schema_takes_the_constraint_from_another_tool(
    schema: Any, name: str, data: st.DataObject
) -> None:
    """In every format, also in those that write parameters one by one."""
    tool_format = tool_formats()[name]
    written = data.draw(st.sampled_from(tool_format.written))
    style = CallStyle.of(tool_format, written.in_template)
    odd = Function({"name": "odd", "parameters": schema if isinstance(schema, dict) else {}})
    functions = (odd, Function({"name": "innocent", "parameters": INNOCENT}))
    alone = style.forced(CallOptions(functions[1:], choice="required"))
    auto = style.auto(CallOptions(functions))
    forced = style.forced(CallOptions(functions, choice="required"), is_exact=False)
    for grammar in (auto, forced):
        assert grammar_error(grammar) is None
    # What the other tool's call is held to alone, it is held to here.
    [rules] = [line for line in alone.text.splitlines() if line.startswith("call_0:")]
    assert "innocent" in rules
    if written.arguments is None:
        arguments = next(line for line in alone.text.splitlines() if line.startswith("args_0:"))
        assert arguments.removeprefix("args_0") in forced.text
        assert arguments.removeprefix("args_0") in auto.text


def many(number: int, size: int) -> tuple[Function, ...]:
    properties = {
        f"p{i}": {"type": "string", "pattern": f"^[a-z]{{1,{10 + i}}}$"} for i in range(size)
    }
    return tuple(
        Function({"name": f"f{i}", "parameters": {"type": "object", "properties": properties}})
        for i in range(number)
    )


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "pythonic", "llama3_json"])
@pytest.mark.parametrize(("number", "size"), [(limits.MAX_FUNCTIONS, 3), (60, 120)])
def test_many_and_large_tools(name: str, number: int, size: int) -> None:
    """All together they are too much; the largest give way, and the last one stays held."""
    style = CallStyle.of(tool_formats()[name], "")
    functions = (*many(number - 1, size), Function({"name": "innocent", "parameters": INNOCENT}))
    try:
        grammar = style.auto(CallOptions(functions))
    except NotWritable:
        pytest.fail("no function could be held to")
    assert grammar_error(grammar) is None
    assert '"integer"' in grammar.text


def test_arguments_are_an_object_whatever_the_schema_says() -> None:
    style = CallStyle.of(tool_formats()["hermes"], "")
    for schema in ({"type": "string"}, {"type": ["object", "string"]}, {"enum": [1, {"n": 1}]},
                   {"anyOf": [{"type": "string"}, {"type": "object"}]}):  # fmt: skip
        grammar = style.forced(
            CallOptions((Function({"name": "innocent", "parameters": schema}),), "required")
        )
        assert accepts(grammar, GOOD), schema
        for arguments in ("1", '"a"', "[]", "null"):
            assert not accepts(grammar, GOOD.replace('{"n": 1}', arguments)), schema
