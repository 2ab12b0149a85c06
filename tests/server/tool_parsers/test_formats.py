"""Every format: its golden transcripts mean the same however they are cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtpjax.errors import ConfigError
from server.parsing.calls import Calls
from server.parsing.events import Message, ToolCallArguments, ToolCallStart, fold
from server.parsing.source import Parser
from server.tool_parsers import check_tool_format, find_tool_format, tool_formats
from tests.examples import num_examples
from tests.server.tool_parsers.transcripts import TOOLS, TRANSCRIPTS, Transcript

CASES = [
    pytest.param(name, case, id=f"{name}-{case.title}")
    for name, cases in TRANSCRIPTS.items()
    for case in cases
]


def parse(name: str, pieces: Iterable[str]) -> Message:
    numbers = itertools.count()
    grammar = tool_formats()[name].grammar
    calls = Calls(TOOLS, make_id=lambda: f"id{next(numbers)}")
    parser = Parser(lambda source: grammar.read(source, calls))
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    started = -1
    for event in events:
        if isinstance(event, ToolCallStart):
            assert event.index == started + 1
            started = event.index
        if isinstance(event, ToolCallArguments):
            assert event.index == started
            assert event.fragment
    return fold(events)


@pytest.mark.parametrize("name", sorted(tool_formats()))
def test_every_format_has_transcripts(name: str) -> None:
    cases = TRANSCRIPTS[name]
    assert any(case.calls and case.content for case in cases)
    assert any(len(case.calls) > 1 for case in cases) or name == "react"


@pytest.mark.parametrize(("name", "case"), CASES)
def test_transcript(name: str, case: Transcript) -> None:
    message = parse(name, [case.text])
    assert message.content == case.content
    assert [call.name for call in message.calls] == [function for function, _ in case.calls]
    for call, (_, arguments) in zip(message.calls, case.calls, strict=True):
        if isinstance(arguments, str):
            assert call.arguments == arguments
        else:
            assert json.loads(call.arguments) == arguments
    assert parse(name, case.text) == message


@given(data=st.data())
@settings(max_examples=num_examples(400))
def test_cut_anywhere(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(TRANSCRIPTS)))
    text = data.draw(st.sampled_from(TRANSCRIPTS[name])).text
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    assert parse(name, pieces) == parse(name, [text])


@given(data=st.data())
@settings(max_examples=num_examples(600))
def test_any_text_is_the_same_however_cut_and_nothing_is_lost(data: st.DataObject) -> None:
    """Mutated and mixed transcripts; text without a call comes back to the letter."""
    name = data.draw(st.sampled_from(sorted(TRANSCRIPTS)))
    texts = [case.text for case in TRANSCRIPTS[name]]
    text = "".join(data.draw(st.lists(st.sampled_from(texts), min_size=1, max_size=2)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(text)))
        removed = data.draw(st.integers(0, 6))
        added = data.draw(st.sampled_from(["", "<", "{", "}", '"', "\\", "]", "\n", "x", ")"]))
        text = text[:at] + added + text[at + removed :]
    whole = parse(name, [text])
    assert parse(name, text) == whole
    if not whole.calls:
        assert whole.content == text


@pytest.mark.parametrize("name", sorted(tool_formats()))
def test_other_texts_are_content(name: str) -> None:
    for cases in TRANSCRIPTS.values():
        for case in cases:
            message = parse(name, [case.text])
            assert message.calls or message.content == case.text


def test_arguments_stream_while_they_are_written() -> None:
    for name, begin in {
        "hermes": '<tool_call>{"name": "get_weather", "arguments": {"city": "Par',
        "qwen3_coder": "<tool_call><function=get_weather><parameter=city>\nPar",
        "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
        '<|tool_call_argument_begin|>{"city": "Par',
    }.items():
        calls = Calls(TOOLS)
        grammar = tool_formats()[name].grammar
        parser = Parser(lambda source, g=grammar, c=calls: g.read(source, c))
        assert fold(parser.feed(begin)).calls[0].arguments == '{"city": "Par'
        (fragment,) = parser.feed("is")
        assert fragment == ToolCallArguments(0, "is")


def test_ids_of_the_model_are_kept() -> None:
    text = TRANSCRIPTS["kimi_k2"][0].text
    assert parse("kimi_k2", [text]).calls[0].id == "functions.get_weather:0"
    text = next(t.text for t in TRANSCRIPTS["mistral"] if t.title == "call id")
    assert parse("mistral", [text]).calls[0].id == "abcdefghi"
    made = tool_formats()["mistral"].make_id()
    assert len(made) == 9
    assert made.isalnum()


@pytest.mark.parametrize(
    ("template", "model_type", "name"),
    [
        ("{'name': ...}</tool_call><tool_call>", "", "hermes"),
        ("<tool_call>\\n<function=' + name + '>", "", "qwen3_coder"),
        ("<tool_call>' + name + '<arg_key>", "", "glm45"),
        ("<｜tool▁calls▁begin｜> ```json", "", "deepseek_v3"),
        ("<｜tool▁calls▁begin｜>", "", "deepseek_v31"),
        ("[TOOL_CALLS]", "", "mistral"),
        ("<|start_header_id|> tools {\"name\": .., \"parameters\": ..}", "", "llama3_json"),
        ("<|start_of_role|> <|tool_call|>", "", "granite"),
        ("<|channel|>commentary<|message|>", "", "gpt_oss"),
        ("<｜DSML｜function_calls>", "", "deepseek_v32"),
        ("'<seed:tool_call>' <function=example>", "", "seed_oss"),
        ("<|START_ACTION|>[", "", "command_r7b"),
        ("'<|tool_call>call:' + name }}<tool_call|>", "", "gemma4"),
        ("'<|tool_call_start|>[' + calls", "", "lfm2"),
        ("'<TOOLCALL>[{{", "", "nemotron"),
        ("nothing known", "", "hermes"),
        ("nothing known", "llama4", "pythonic"),
    ],
)  # fmt: skip
def test_formats_are_recognised(template: str, model_type: str, name: str) -> None:
    assert find_tool_format(template, model_type) == name


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"known are command_r7b, .*xlam"):
        check_tool_format("qwen")
