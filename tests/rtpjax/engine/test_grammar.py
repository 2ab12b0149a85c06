"""What the compiler of grammars refuses."""

from __future__ import annotations

import json

import pytest

from rtpjax.engine.grammar import GrammarCompiler
from rtpjax.engine.request import Grammar
from rtpjax.errors import RequestError
from tests.e2e import byte_model


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    ],
)
def test_a_schema_that_only_names_itself_is_refused(schema):
    """It compiles; before, its first mask failed and the request ended as the engine's fault."""
    compiler = GrammarCompiler(byte_model.tokenizer(), [byte_model.end_id()])
    with pytest.raises(RequestError, match="only names itself") as refused:
        compiler.compile(Grammar("json_schema", json.dumps(schema), param="tools[0]"))
    assert refused.value.param == "tools[0]"


def test_a_schema_that_contains_itself_compiles():
    items = {"type": "array", "items": {"$ref": "#"}}
    schema = {"type": "object", "properties": {"a": items}, "additionalProperties": False}
    compiler = GrammarCompiler(byte_model.tokenizer(), [byte_model.end_id()])
    assert compiler.compile(Grammar("json_schema", json.dumps(schema))).grammar is not None
