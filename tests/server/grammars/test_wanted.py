"""vLLM's names for response_format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rtpjax.engine.request import Grammar
from rtpjax.errors import RequestError
from server.grammars.wanted import wanted_grammar
from server.protocol.form import FormFields

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CLOSED = json.dumps(SCHEMA | {"additionalProperties": False})
CHOICE = 'start: "a" | "b\\n"\n'


@pytest.mark.parametrize(
    ("fields", "kind", "text", "param"),
    [
        ({"guided_json": SCHEMA}, "json_schema", CLOSED, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", CLOSED, "guided_json"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["a", "b\n", "a"]}, "lark", CHOICE, "guided_choice"),
        ({"guided_grammar": 'root ::= "a"'}, "ebnf", 'root ::= "a"', "guided_grammar"),
        ({"guided_grammar": 'start: "a"'}, "lark", 'start: "a"', "guided_grammar"),
        (
            {"structured_outputs": {"choice": ["a", "b\n"], "regex": None}},
            *("lark", CHOICE, "structured_outputs.choice"),
        ),
        (
            {"structured_outputs": {"json_object": True}},
            *("json_object", "", "structured_outputs.json_object"),
        ),
        ({"response_format": {"type": "text"}, "guided_regex": "a"}, "regex", "a", "guided_regex"),
        ({"response_format": {"type": "regex", "regex": "b"}}, "regex", "b", "response_format"),
    ],
)
def test_names(fields: dict[str, Any], kind: Any, text: str, param: str) -> None:
    assert wanted_grammar(FormFields(**fields)) == Grammar(kind, text, param=param)


def test_nothing_is_wanted() -> None:
    assert wanted_grammar(FormFields()) is None
    assert wanted_grammar(FormFields(structured_outputs={"json_object": False})) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex"),
        ({"guided_json": SCHEMA, "response_format": {"type": "json_object"}}, "guided_json"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs.xml"),
        ({"structured_outputs": []}, "structured_outputs"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"type": "frob"}}, "guided_json.type"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice"),
        ({"guided_choice": ["a"] * 1001}, "guided_choice"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_grammar": 5}, "guided_grammar"),
    ],
)
def test_refuses(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        wanted_grammar(FormFields(**fields))
    assert caught.value.param == param
