"""Every reasoning format: the same reasoning and content however the text is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.answer_parser import AnswerParser, AnswerSyntax
from server.parsing.events import Message, fold
from server.reasoning_parsers import find_reasoning_format, reasoning_formats
from server.tool_parsers import tool_formats
from tests.examples import num_examples

CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
HARMONY_CALL = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>"


def tagged(begin: str, end: str) -> list[tuple[str, bool, str, str, int]]:
    """Text, whether the prompt opened the reasoning; reasoning, content, number of calls."""
    return [
        (f"{begin}\nI think.\n{end}\n\nHi.\n", False, "I think.", "Hi.\n", 0),
        (f"I think.\n{end}\n\nHi.", True, "I think.", "Hi.", 0),
        (f"{begin}\nI think.{end}Hi.", True, "I think.", "Hi.", 0),
        (f"\n{begin}a {CALL} b{end}", False, f"a {CALL} b", "", 0),
        (f"{begin}a{end}\n{CALL}", False, "a", "", 1),
        (f"{begin}\n\n{end}\n\nHi", False, "", "Hi", 0),
        (f"{begin}cut {end[:-1]}", False, f"cut {end[:-1]}", "", 0),
        ("cut", True, "cut", "", 0),
        (f" Plain, not {begin}a tag{end}", False, "", f" Plain, not {begin}a tag{end}", 0),
        (begin[:-1], False, "", begin[:-1], 0),
    ]


CASES = {
    "think": tagged("<think>", "</think>"),
    "kimi": tagged("◁think▷", "◁/think▷"),
    "magistral": tagged("[THINK]", "[/THINK]"),
    "seed_oss": tagged("<seed:think>", "</seed:think>"),
    "minimax_m3": tagged("<mm:think>", "</mm:think>"),
    "gemma4": tagged("<|channel>thought", "<channel|>"),
    "cohere": [
        ("<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Hi <a><|END_RESPONSE|>", False,
         "Hm.", "Hi <a>", 0),
        (f"Hm.<|END_THINKING|>{CALL}<|START_THINKING|>Ah <|START_RESPONSE|>.<|END_THINKING|>", True,
         "Hm.Ah <|START_RESPONSE|>.", "", 1),
        ("<|START_THINKING|>cut <|END_THINK", False, "cut <|END_THINK", "", 0),
        ("<|START_RESPONSE|>cut <|END_", False, "", "cut <|END_", 0),
        ("plain text", False, "", "plain text", 0),
    ],
    "harmony": [
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi",
         False, "Hm.", "Hi", 0),
        ("Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>", True, "Hm.", "Hi",
         0),
        (f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{HARMONY_CALL}", False, "Hm.",
         "", 1),
        ("<|channel|>analysis<|message|>{" + CALL, False, "{" + CALL, "", 0),
        ("<|channel|>commentary<|message|>I look.<|end|><|start|>assistant" + HARMONY_CALL, False,
         "", "I look.", 1),
        ("plain text", False, "", "plain text", 0),
        ("<|channel|>final<|message|>a < b <| c", False, "", "a < b <| c", 0),
    ],
}  # fmt: skip


def parse(name: str, is_open: bool, pieces: list[str] | str) -> Message:
    tools = tool_formats()["gpt_oss" if name == "harmony" else "hermes"]
    grammar = reasoning_formats()[name].grammar
    parser = AnswerParser(AnswerSyntax(tools, grammar, {"now": {}}, is_reasoning_open=is_open))
    message = fold([e for piece in pieces for e in parser.feed(piece)] + parser.finish())
    for call in message.calls:
        call.id = ""
    return message


def test_every_format_has_cases() -> None:
    assert CASES.keys() == reasoning_formats().keys()


@pytest.mark.parametrize("name", sorted(CASES))
def test_cases(name: str) -> None:
    for text, is_open, reasoning, content, num_calls in CASES[name]:
        message = parse(name, is_open, [text])
        assert (message.reasoning, message.content) == (reasoning, content)
        assert len(message.calls) == num_calls
        assert parse(name, is_open, text) == message


@given(data=st.data())
@settings(max_examples=num_examples(200))
def test_cut_anywhere(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(CASES)))
    text, is_open, *_ = data.draw(st.sampled_from(CASES[name]))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    assert parse(name, is_open, pieces) == parse(name, is_open, [text])


def test_reasoning_streams() -> None:
    grammar = reasoning_formats()["think"].grammar
    parser = AnswerParser(AnswerSyntax(reasoning=grammar))
    assert fold(parser.feed("<think>\nI th")).reasoning == "I th"
    assert fold(parser.feed("ink.\n</thi")).reasoning == "ink."
    assert parser.feed("nk>") == []
    assert fold(parser.feed("\nHi")).content == "Hi"


def test_open_prompts_and_templates() -> None:
    grammar = reasoning_formats()["think"].grammar
    assert grammar.is_open("<|im_start|>assistant\n<think>\n")
    assert not grammar.is_open("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert find_reasoning_format("{{ content.split('</think>')[-1] }}") == "think"
    assert find_reasoning_format("{{ content }}") == "none"
    assert find_reasoning_format("", "gpt_oss") == "harmony"
    for tag, name in (("seed:think", "seed_oss"), ("mm:think", "minimax_m3")):
        assert find_reasoning_format(f"{{% set end = '</{tag}>' %}}") == name
