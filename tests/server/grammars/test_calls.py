"""Every format: what its grammars let a model write is read as exactly the calls that it wrote."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest

from rtpjax.errors import RequestError
from server.function_calls import CallOptions, Function
from server.grammars.calls import CallStyle
from server.parsing.calls import Calls
from server.parsing.events import Message, fold
from server.parsing.source import Parser
from server.parsing.written import Written
from server.tool_parsers import tool_formats
from tests.server.grammars.walks import accepts, walk

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer"},
        "unit": {"type": "string", "enum": ["c", "f"]},
        "metric": {"type": "boolean"},
    },
    "required": ["city", "unit"],
}
DEEP = {
    "type": "object",
    "properties": {
        "where": {
            "type": "object",
            "properties": {"lat": {"type": "number"}, "tag": {"type": "string", "maxLength": 4}},
            "required": ["lat", "tag"],
            "additionalProperties": False,
        },
        "code": {"type": "string", "pattern": "^[a-c]{1,3}/$"},
        "or_none": {
            "anyOf": [{"type": "string", "minLength": 2, "maxLength": 9}, {"type": "null"}]
        },
        "free": {"type": "string"},
    },
    "required": ["where", "code"],
}
FUNCTIONS = tuple(
    Function({"name": name, "parameters": parameters})
    for name, parameters in {"get_weather": WEATHER, "look.up": DEEP, "now": None}.items()
    if parameters or name == "now"
)
SCHEMAS = {function.name: function.schema for function in FUNCTIONS}
CALLS = CallOptions(FUNCTIONS, choice="required")

# What the models were trained to write for Paris in c, and then for the time. By hand.
_ARGS = '{"city": "Paris", "unit": "c"}'
_LIST = f'[{{"name": "get_weather", "arguments": {_ARGS}}}, {{"name": "now", "arguments": {{}}}}]'
EXAMPLES: dict[str, tuple[str, ...]] = {
    "command_r7b": (
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": '
        f'{_ARGS}}},\n    {{"tool_call_id": "1", "tool_name": "now", "parameters": {{}}}}\n]'
        "<|END_ACTION|>",
    ),
    "deepseek_v32": (
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="unit" string="true">c</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        '<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
    ),
    "gemma4": (
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,unit:<|"|>c<|"|>}<tool_call|>'
        "<|tool_call>call:now{}<tool_call|>",
    ),
    "lfm2": (
        f"<|tool_call_start|>{_LIST}<|tool_call_end|>",
        '<|tool_call_start|>[get_weather(city="Paris", unit="c"), now()]<|tool_call_end|>',
    ),
    "nemotron": (f"<TOOLCALL>{_LIST}</TOOLCALL>",),
    "seed_oss": (
        "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n"
        "<parameter=unit>c</parameter>\n</function>\n</seed:tool_call>\n"
        "<seed:tool_call>\n<function=now>\n</function>\n</seed:tool_call>",
    ),
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        f"{_ARGS}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n"
        "{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek_v31": (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{_ARGS}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "gemma": (
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>,unit:<escape>c<escape>}"
        "<end_function_call><start_function_call>call:now{}<end_function_call>",
    ),
    "glm45": (
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "<arg_key>unit</arg_key>\n<arg_value>c</arg_value>\n</tool_call>\n"
        "<tool_call>now\n</tool_call>",
    ),
    "glm47": (
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value>"
        "<arg_key>unit</arg_key><arg_value>c</arg_value></tool_call><tool_call>now</tool_call>",
    ),
    "gpt_oss": (
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>" + _ARGS,
    ),
    "granite": (f"<|tool_call|>{_LIST}",),
    "hermes": (
        f'<tool_call>\n{{"name": "get_weather", "arguments": {_ARGS}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    ),
    "internlm": (
        f'<|action_start|><|plugin|>\n{{"name": "get_weather", "parameters": {_ARGS}}}'
        '<|action_end|>\n<|action_start|><|plugin|>\n{"name": "now", "parameters": {}}'
        "<|action_end|>",
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        f"<|tool_call_argument_begin|>{_ARGS}<|tool_call_end|><|tool_call_begin|>functions.now:1"
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "llama3_json": (
        f'{{"name": "get_weather", "parameters": {_ARGS}}}; {{"name": "now", "parameters": {{}}}}',
    ),
    "minimax_m2": (
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>'
        '\n<parameter name="unit">c</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n'
        "</minimax:tool_call>",
    ),
    "mistral": (
        f"[TOOL_CALLS]get_weather[ARGS]{_ARGS}[TOOL_CALLS]now[ARGS]{{}}",
        f"[TOOL_CALLS]{_LIST}",
        f"[TOOL_CALLS] {_LIST}",
    ),
    "phi4_mini": (f"<|tool_call|>{_LIST}<|/tool_call|>", f"functools{_LIST}"),
    "pythonic": ('[get_weather(city="Paris", unit="c"), now()]',),
    "qwen3_coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=unit>\nc\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
    ),
    "qwen_agent": (f"✿FUNCTION✿: get_weather\n✿ARGS✿: {_ARGS}\n✿FUNCTION✿: now\n✿ARGS✿: {{}}",),
    "react": (f"\nAction: get_weather\nAction Input: {_ARGS}",),
    "xlam": (_LIST,),
}
WAYS = [
    pytest.param(name, i, has_marks, id=f"{name}-{i}-{'special' if has_marks else 'text'}")
    for name, tool_format in tool_formats().items()
    for i in range(len(tool_format.written))
    for has_marks in (False, True)
]


def style_of(name: str, i: int) -> CallStyle:
    tool_format = tool_formats()[name]
    return CallStyle.of(tool_format, tool_format.written[i].in_template)


def closers_of(style: CallStyle) -> tuple[str, ...]:
    """What ends a string."""
    form = style.written.arguments
    return ('"',) if form is None or form.is_python else ('"', form.quote + form.after)


def parse(name: str, text: str) -> Message:
    calls = Calls(SCHEMAS)
    parser = Parser(lambda source: tool_formats()[name].grammar.read(source, calls))
    return fold(parser.feed(text) + parser.finish())


def rewritten(written: Written, message: Message) -> str:
    """The text that the calls were read from, written again."""
    texts = []
    for call in message.calls:
        arguments = call.arguments
        if written.arguments is not None:
            form, properties = written.arguments, SCHEMAS[call.name]["properties"]
            given = json.loads(arguments, parse_int=lambda digits: f"#{digits}")
            parts = []
            for key, value in given.items():
                kind = properties[key].get("type")
                if kind == "string" and form.is_python:
                    value = json.dumps(value, ensure_ascii=False)
                elif kind == "string":
                    value = form.quote + value + form.quote
                elif kind == "boolean":
                    value = str(value) if form.is_python else str(value).lower()
                else:
                    value = value.removeprefix("#")
                before = form.before.replace("{key}", key)
                before = before.replace("{is_string}", str(kind == "string").lower())
                parts.append(before + value + form.after)
            arguments = form.separator.join(parts)
        texts.append(written.call.replace("{name}", call.name) + arguments + written.end)
    return written.begin + written.separator.join(texts) + written.section_end


def check(message: Message) -> None:
    for call in message.calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


@pytest.mark.parametrize(("name", "i", "has_marks"), WAYS)
def test_what_models_were_trained_on_fits(name: str, i: int, has_marks: bool) -> None:
    text, style = EXAMPLES[name][i], style_of(name, i)
    assert accepts(style.forced(CALLS), text, has_marks=has_marks)
    auto = style.auto(CALLS)
    assert accepts(auto, text, has_marks=has_marks)
    assert accepts(auto, "Just text.", has_marks=has_marks)
    assert not accepts(style.forced(CALLS), "Just text.", has_marks=has_marks)
    for wrong in (text.replace("get_weather", "get_wether"), text.replace("unit", "units")):
        assert not accepts(style.forced(CALLS), wrong, has_marks=has_marks)
        if name not in ("llama3_json", "xlam", "pythonic") or "units" in wrong:
            assert not accepts(auto, wrong, has_marks=has_marks)
    names = [call.name for call in parse(name, text).calls]
    assert names == ["get_weather", "now"][: style.written.most]


@pytest.mark.parametrize(("name", "i", "has_marks"), WAYS)
def test_forced_calls_are_read_as_they_were_written(name: str, i: int, has_marks: bool) -> None:
    style, ended = style_of(name, i), 0
    calls = CallOptions(tuple(f for f in FUNCTIONS if f.name != "look.up"), choice="required")
    grammar = style.forced(calls)
    for seed in range(12):
        rng = random.Random(seed)
        text = walk(grammar, rng, EXAMPLES[name][i], closers_of(style), has_marks=has_marks)
        if text is None:
            continue
        ended += 1
        message = parse(name, text)
        assert message.calls and not message.content, text
        check(message)
        read = rewritten(style.written, message)
        if "{index}" in read:
            expected = re.escape(read).replace(re.escape("{index}"), r"\d+")
            assert re.fullmatch(expected, text), text
        elif style.written.arguments is None or "\\" not in text:
            assert _spaceless(read) == _spaceless(text)
    assert ended >= 6


def _spaceless(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize(("name", "i", "has_marks"), WAYS)
def test_hard_schemas_are_kept_to(name: str, i: int, has_marks: bool) -> None:
    """Nested values, patterns, and strings that may be null; after the trigger of auto, too."""
    style, ended = style_of(name, i), 0
    calls = CallOptions(FUNCTIONS[1:2])
    if not re.fullmatch(style.written.names, "look.up"):
        pytest.skip("the format has no such names")
    for seed in range(30):  # some formats' walks seldom end
        if seed >= 6 and ended >= 2:
            break
        rng = random.Random(seed)
        text = walk(
            style.forced(calls),
            rng,
            EXAMPLES[name][i] + "abc/",
            closers_of(style),
            has_marks=has_marks,
        )
        if text is None:
            continue
        ended += 1
        assert accepts(style.auto(calls), text, has_marks=has_marks)
        message = parse(name, text)
        assert {call.name for call in message.calls} == {"look.up"}, text
        check(message)
    assert ended >= 2


def test_every_format_has_examples() -> None:
    assert EXAMPLES.keys() == tool_formats().keys()
    assert all(len(EXAMPLES[n]) == len(f.written) for n, f in tool_formats().items())


def options(*parameters: Any, **said: Any) -> CallOptions:
    functions = [Function({"name": f"f{i}", "parameters": p}) for i, p in enumerate(parameters)]
    return CallOptions(tuple(functions), choice="required", **said)


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "anyOf": [{"required": ["a"]}], "properties": {"a": {}}},
        {"type": "object", "properties": {"a b": {"type": "string"}}},
        {"type": "object", "properties": {"a": {"type": "string", "format": "email"}}},
        {"type": "object", "properties": {"a": {"type": ["string", "object"]}}},
        {"type": "object", "properties": {"a": {"type": "string", "enum": ["</parameter>"]}}},
        {"type": "object", "properties": {}, "required": ["a"]},
    ],
)
def test_what_tags_cannot_write_is_said(parameters: dict[str, Any]) -> None:
    assert not style_of("qwen3_coder", 0).can_write(options(parameters))
    assert style_of("hermes", 0).can_write(options(parameters))


def test_named_and_single_calls() -> None:
    style = style_of("hermes", 0)
    both = '<tool_call>\n{"name": "f0", "arguments": {}}\n</tool_call>'
    other = both.replace("f0", "f1")
    named = style.forced(options({}, {}, named="f1"))
    assert accepts(named, other, has_marks=False)
    assert not accepts(named, both, has_marks=False)
    single = style.forced(options({}, {}, is_parallel=False))
    assert accepts(single, both, has_marks=False)
    assert not accepts(single, f"{both}\n{other}", has_marks=False)


def test_a_wrong_schema_is_named() -> None:
    functions = (
        Function({"name": "f", "parameters": {}}),
        Function({"name": "g", "parameters": {"type": "frob"}, "strict": True}),
    )
    for make in (style_of("hermes", 0).forced, style_of("hermes", 0).auto):
        with pytest.raises(RequestError) as caught:
            make(CallOptions(functions, choice="required"))
        assert caught.value.param == "tools[1].function.parameters.type"


@pytest.mark.parametrize("strict", [True, False])
def test_what_tags_cannot_write_is_left_out_of_auto(strict: bool) -> None:
    """Of the one parameter; where the function is strict it is an error."""
    parameters = {"a": {"type": "string", "format": "email"}, "b": {"type": "integer"}}
    schema = {"type": "object", "properties": parameters, "required": ["a", "b"]}
    function = Function({"name": "f", "parameters": schema, "strict": strict})
    style = style_of("qwen3_coder", 0)
    if strict:
        with pytest.raises(RequestError) as caught:
            style.auto(CallOptions((function,)))
        assert caught.value.param == "tools[0].function.parameters.properties.a"
        return
    text = (
        "<tool_call>\n<function=f>\n<parameter=a>\nno address\n</parameter>\n"
        "<parameter=b>\n1\n</parameter>\n</function>\n</tool_call>"
    )
    auto = style.auto(CallOptions((function,)))
    assert accepts(auto, text, has_marks=False)
    assert not accepts(auto, text.replace("1", "x"), has_marks=False)


def test_a_mark_in_free_text_opens_nothing_but_its_trigger() -> None:
    """Special tokens that end a call may stand in free text; what they opened is constrained."""
    auto = style_of("hermes", 0).auto(CALLS)
    assert accepts(auto, "a </tool_call> b", has_marks=True)
    assert accepts(auto, "a </tool_call> b", has_marks=False)
    assert not accepts(auto, "a <tool_call> b", has_marks=True)
    assert not accepts(auto, "a <tool_call> b", has_marks=False)
