"""response_format beside functions, and where constraints begin."""

from __future__ import annotations

import pytest

from rtpjax.engine.request import Grammar
from rtpjax.errors import RequestError
from server.answer_parser import AnswerSyntax
from server.function_calls import CallOptions, Function
from server.grammars.calls import CallStyle
from server.grammars.chat import chat_grammar
from server.reasoning_parsers import reasoning_formats
from server.tool_parsers import tool_formats
from tests.server.grammars.test_calls import EXAMPLES, FUNCTIONS
from tests.server.grammars.walks import accepts

WANTED = Grammar("json_schema", '{"type": "array", "items": {"type": "integer"}}')
EMAIL = {"type": "object", "properties": {"a": {"type": "string", "format": "email"}}}


def syntax(name: str = "hermes", **said) -> AnswerSyntax:
    tool_format = tool_formats()[name]
    return AnswerSyntax(tools=tool_format, style=CallStyle.of(tool_format, ""), **said)


@pytest.mark.parametrize("name", sorted(tool_formats()))
def test_calls_or_the_format(name: str) -> None:
    grammar = chat_grammar(WANTED, CallOptions(FUNCTIONS), syntax(name))
    assert grammar is not None
    assert accepts(grammar, EXAMPLES[name][-1], has_marks=False)
    assert accepts(grammar, "[1, 2]", has_marks=False)
    for neither in ("Just text.", '["a"]', EXAMPLES[name][-1] + " and text"):
        assert not accepts(grammar, neither, has_marks=False)


def test_required_calls_win() -> None:
    calls = CallOptions(FUNCTIONS, choice="required")
    grammar = chat_grammar(WANTED, calls, syntax())
    assert grammar is not None
    assert not accepts(grammar, "[1, 2]", has_marks=False)
    assert accepts(grammar, EXAMPLES["hermes"][0], has_marks=False)


def test_without_functions_the_format_is_all() -> None:
    assert chat_grammar(WANTED, CallOptions(FUNCTIONS, choice="none"), None) == WANTED
    assert chat_grammar(None, CallOptions(), None) is None


@pytest.mark.parametrize(("name", "mark"), [("think", "</think>"), ("harmony", "<|end|>")])
def test_constraints_come_after_open_reasoning(name: str, mark: str) -> None:
    reasoning = reasoning_formats()[name].grammar
    found = syntax(reasoning=reasoning, is_reasoning_open=True)
    for wanted in (None, WANTED):
        grammar = chat_grammar(wanted, CallOptions(FUNCTIONS), found)
        assert grammar is not None and grammar.after == mark
    both = chat_grammar(WANTED, CallOptions(FUNCTIONS), found)
    assert both is not None
    assert accepts(both, f"Hm. {mark}\n\n[1]", has_marks=False)
    assert not accepts(both, f"Hm. {mark}\n\nText", has_marks=False)


def test_what_cannot_stand_together_is_named() -> None:
    tags = Grammar("structural_tag", "[]")
    with pytest.raises(RequestError) as caught:
        chat_grammar(tags, CallOptions(FUNCTIONS), syntax())
    assert caught.value.param == "response_format"


def test_functions_that_cannot_be_written_refuse_nothing() -> None:
    """A schema is written as far as can be; a name that cannot be written cannot be called."""
    calls = CallOptions((Function({"name": "f", "parameters": EMAIL}),))
    text = "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>"
    for wanted, other in ((None, "Just text."), (WANTED, "[1]")):
        grammar = chat_grammar(wanted, calls, syntax("qwen3_coder"))
        assert grammar is not None
        assert accepts(grammar, text, has_marks=False)
        assert accepts(grammar, other, has_marks=False)
        assert not accepts(grammar, text.replace("=f", "=g"), has_marks=False)
    odd = CallOptions((Function({"name": "a:b", "parameters": {}}),))
    assert chat_grammar(None, odd, syntax("pythonic")) is None
    assert chat_grammar(WANTED, odd, syntax("pythonic")) == WANTED
    both = CallOptions((*odd.functions, Function({"name": "f", "parameters": {}})))
    grammar = chat_grammar(None, both, syntax("pythonic"))
    assert grammar is not None and accepts(grammar, "[f()]", has_marks=False)
