"""response_format -> grammars; and over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rtpjax.engine.request import Grammar
from rtpjax.errors import RequestError
from server.grammars.response_format import response_grammar
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import ScriptedEngine

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CLOSED = SCHEMA | {"additionalProperties": False}


def test_free_text_has_no_grammar() -> None:
    assert response_grammar(None) is None
    assert response_grammar({"type": "text"}) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "json_object"}, Grammar("json_object")),
        ({"type": "regex", "regex": "a+"}, Grammar("regex", "a+")),
        ({"type": "regex", "pattern": "a+"}, Grammar("regex", "a+")),
        ({"type": "ebnf", "ebnf": 'root ::= "a"'}, Grammar("ebnf", 'root ::= "a"')),
        ({"type": "lark", "lark": 'start: "a"'}, Grammar("lark", 'start: "a"')),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
            Grammar("json_schema", json.dumps(CLOSED)),
        ),
        ({"type": "json_object", "schema": SCHEMA}, Grammar("json_schema", json.dumps(CLOSED))),
    ],
)
def test_response_formats(given: dict[str, Any], expected: Grammar) -> None:
    assert response_grammar(given) == expected


def test_only_strict_refuses_what_cannot_be_enforced() -> None:
    schema = {"type": "array", "items": {"pattern": "(?!a)"}, "uniqueItems": True}
    for given in (
        {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        {"type": "json_schema", "json_schema": {"schema": schema, "strict": False}},
        {"type": "json_object", "schema": schema},
    ):
        grammar = response_grammar(given)
        assert grammar is not None
        assert json.loads(grammar.text) == {"type": "array", "items": {}}
    strict = {"schema": schema, "strict": True}
    with pytest.raises(RequestError) as caught:
        response_grammar({"type": "json_schema", "json_schema": strict})
    assert caught.value.param == "response_format.json_schema.schema.uniqueItems"


def test_structural_tag() -> None:
    structure = {"begin": "<f=x>", "schema": SCHEMA, "end": "</f>"}
    given = {"type": "structural_tag", "triggers": ["<g", "<f"], "structures": [structure]}
    grammar = response_grammar(given, after="</think>")
    assert grammar is not None
    assert (grammar.kind, grammar.after) == ("structural_tag", "</think>")
    [tag] = json.loads(grammar.text)
    assert tag == {"trigger": "<f", "begin": "<f=x>", "schema": CLOSED, "end": "</f>"}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("json", "response_format"),
        ({}, "response_format.type"),
        ({"type": "yaml"}, "response_format.type"),
        ({"type": "regex"}, "response_format.regex"),
        ({"type": "regex", "regex": 3}, "response_format.regex"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {}}, "response_format.json_schema.schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": {"type": "frob"}, "strict": True}},
            "response_format.json_schema.schema.type",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}},
            "response_format.json_schema.strict",
        ),
        ({"type": "structural_tag", "triggers": [1]}, "response_format.triggers"),
        ({"type": "structural_tag", "triggers": ["<f"]}, "response_format.structures"),
        (
            {"type": "structural_tag", "triggers": ["<f"], "structures": [{"begin": "<g"}]},
            "response_format.structures[0].begin",
        ),
    ],
)
def test_refuses_over_http(server: LiveServer, given: Any, param: str) -> None:
    response = server.chat(response_format=given)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_the_grammar_reaches_the_engine_for_each_choice(engine: ScriptedEngine) -> None:
    with LiveServer(engine) as server:
        response = server.chat(response_format={"type": "json_object"}, n=2, max_tokens=3)
        assert response.status_code == 200
    assert [r.grammar for r in engine.seen] == [Grammar("json_object")] * 2
