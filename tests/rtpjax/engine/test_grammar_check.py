"""Grammars are checked without a tokenizer as they are compiled with one; dead ends are named."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from rtpjax.engine.constraint import Constraint
from rtpjax.engine.grammar import MAX_RULES, GrammarCompiler
from rtpjax.engine.grammar_check import END, byte_matcher, grammar_error, schema_error
from rtpjax.engine.request import Grammar
from rtpjax.errors import RequestError
from tests.e2e import byte_model


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_model.tokenizer(), [byte_model.end_id()])


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("json_schema", '{"type": "integer"}'),
        Grammar("json_schema", '{"uniqueItems": true}'),
        Grammar("json_schema", '{"type": "string", "pattern": "(?!a)"}'),
        Grammar("json_schema", '{"$ref": "#"}'),
        Grammar("json_schema", '{"minimum": 2, "maximum": 1, "type": "integer"}'),
        Grammar("regex", "a+"),
        Grammar("regex", "("),
        Grammar("lark", 'start: "a"\n'),
        Grammar("lark", "start: b\n"),
        Grammar("lark", 'start: "a"\n' + "\n" * MAX_RULES),
        Grammar("lark", 'start: "a"\n' + "\n" * MAX_RULES, is_flat=True),
        Grammar("lark", 'part_0: "b"\n', triggers=("<a>",), marks=("<a>",)),
        Grammar("json_object", instead=Grammar("regex", "(")),
    ],
)
def test_as_the_compiler(grammar: Grammar, compiler: GrammarCompiler) -> None:
    try:
        compiler.compile(grammar)
    except RequestError:
        assert grammar_error(grammar)
    else:
        assert grammar_error(grammar) is None


def test_tokens_are_bytes() -> None:
    matcher = byte_matcher(Grammar("json_schema", json.dumps({"const": "é"})))
    text = list('"é"'.encode())
    assert matcher.try_consume_tokens(text) == len(text)
    assert matcher.is_accepting()
    assert byte_matcher(Grammar("regex", "a*")).try_consume_tokens([97, END]) == 2


def test_equal_schemas_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"const": "compiled once"}
    assert schema_error(schema) is None
    monkeypatch.setattr("rtpjax.engine.grammar_check.LLMatcher", None)
    assert schema_error(dict(schema)) is None


def test_a_dead_end_is_the_requests_fault(compiler: GrammarCompiler) -> None:
    """Nothing fits the terminal B, which shows only where it is needed."""
    grammar = Grammar("lark", 'start: "a" B\nB: /x/ & /y/\n', param="guided_grammar")
    with ThreadPoolExecutor(1) as pool:
        constraint = Constraint(compiler.compile(grammar), pool)
        [token_id] = byte_model.encode("a")
        wait(filter(None, [constraint.pending]), 30)
        assert constraint.accept(token_id, is_end=False)
        wait(filter(None, [constraint.pending]), 30)
        error = constraint.error
    assert isinstance(error, RequestError)
    assert error.param == "guided_grammar"
