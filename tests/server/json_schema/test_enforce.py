"""What of a schema is enforced, what is left out, and that answers under it fit it and end."""

from __future__ import annotations

import json
import logging
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema.exceptions import SchemaError

from rtpjax.engine.grammar_check import schema_error
from rtpjax.errors import RequestError
from server.json_schema.enforce import LeftOut, enforceable, warn_of
from tests.examples import num_examples
from tests.server.json_schema.any_schema import schemas, shrunk_text

# zod's.
EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[\w+-]@([\w][\w\-]*\.)+[A-Za-z]{2,}$"
STRING, INTEGER = {"type": "string"}, {"type": "integer"}


@pytest.mark.parametrize(
    ("part", "mended", "at"),
    [
        ({"type": "array", "uniqueItems": True}, {"type": "array"}, ".uniqueItems"),
        ({**STRING, "pattern": EMAIL}, STRING, ".pattern"),
        ({**STRING, "pattern": r"(a)\1"}, STRING, ".pattern"),
        ({**STRING, "pattern": "[^]", "maxLength": 3}, {**STRING, "maxLength": 3}, ".pattern"),
        ({**STRING, "pattern": "[[a]"}, STRING, ".pattern"),
        ({**STRING, "pattern": 3}, STRING, ".pattern"),
        (
            {"oneOf": [STRING, {**STRING, "maxLength": 3}]},
            {"anyOf": [STRING, {**STRING, "maxLength": 3}]},
            ".oneOf",
        ),
        ({"type": "array", "contains": INTEGER}, {"type": "array"}, ".contains"),
        ({"not": INTEGER}, {}, ".not"),
        ({"if": STRING, "then": {"maxLength": 1}}, {}, ".then"),
        ({"$dynamicRef": "#a"}, {}, ".$dynamicRef"),
        ({"properties": None}, {}, ".properties"),
        ({"type": "array", "items": None}, {"type": "array", "items": {}}, ".items"),
        ({"type": None}, {}, ".type"),
        ({"type": "frob"}, {}, ".type"),
        ({"$ref": "http://example.com/s"}, {}, ".$ref"),
        ({"$ref": "#/$defs/nowhere"}, {}, ".$ref"),
        ({**INTEGER, "minimum": 2**63}, INTEGER, ".minimum"),
        ({**INTEGER, "minimum": 5, "maximum": 4}, {**INTEGER, "maximum": 4}, ".minimum"),
        ({**STRING, "minLength": 5, "pattern": "^a$"}, {**STRING, "minLength": 5}, ".pattern"),
        ({**STRING, "minLength": -1}, STRING, ".minLength"),
        ({"type": "number", "multipleOf": 0}, {"type": "number"}, ".multipleOf"),
        ({"enum": []}, {}, ".enum"),
        ({"const": 2**53 + 1}, {}, ".const"),
        (
            {"patternProperties": {"^a$": INTEGER}, "additionalProperties": False,
             "minProperties": 2},
            {"properties": {"a": INTEGER}, "additionalProperties": False},
            ".minProperties",
        ),
        (
            {"type": "array", "items": {"enum": [1]}, "minItems": 2, "uniqueItems": True},
            {"type": "array", "items": {"enum": [1]}, "maxItems": 1},
            ".minItems",
        ),
        (
            {"type": "object", "properties": {"b": STRING}, "required": ["c"],
             "additionalProperties": False},
            {"type": "object", "properties": {"b": STRING}, "additionalProperties": False},
            ".required",
        ),
        (3, {}, ""),
    ],
)  # fmt: skip
def test_as_little_as_possible_is_left_out(part: Any, mended: Any, at: str) -> None:
    """The other parts of the schema stay, and the one that goes is named."""
    for schema, expected, path in (
        (
            {"type": "object", "properties": {"a": part, "b": INTEGER}, "required": ["a"]},
            {"type": "object", "properties": {"a": mended, "b": INTEGER}, "required": ["a"],
             "additionalProperties": False},
            f"s.properties.a{at}",
        ),
        (
            {"type": "array", "prefixItems": [INTEGER, part], "minItems": 2},
            {"type": "array", "prefixItems": [INTEGER, mended], "minItems": 2},
            f"s.prefixItems[1]{at}",
        ),
        (
            {"$ref": "#/definitions/x", "definitions": {"x": part}},
            {"$ref": "#/$defs/0", "$defs": {"0": mended}},
            f"s.definitions.x{at}",
        ),
    ):  # fmt: skip
        if part == 3 and "definitions" in schema:
            continue
        enforced = enforceable(schema, "s", is_strict=False)
        assert enforced.schema == expected
        assert [left_out.path for left_out in enforced.left_out] == [path]
        with pytest.raises(RequestError) as caught:
            enforceable(schema, "s", is_strict=True)
        assert caught.value.param == path
        assert "\n" not in str(caught.value) and "lark" not in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {
            "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}},
            "$ref": "#/$defs/a",
        },
        {"type": "object", "additionalProperties": {"$ref": "#"}, "minProperties": 1},
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
    ],
)
def test_what_asks_for_itself_for_ever_is_noticed(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="without an end"):
        enforceable(schema, "s", is_strict=True)
    enforced = enforceable(schema, "s", is_strict=False)
    assert enforced.left_out
    assert shrunk_text(enforced.schema, random.Random(1)) is not None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]},
    ],
)
def test_what_may_ask_for_itself_is_enforced(schema: dict[str, Any]) -> None:
    assert enforceable(schema, "s", is_strict=True).left_out == ()


def test_a_reference_beside_properties_adds_to_them() -> None:
    base = {"type": "object", "properties": {"a": STRING}, "required": ["a"]}
    both = {"$ref": "#/$defs/b", "properties": {"n": INTEGER}, "required": ["n"]}
    enforced = enforceable(both | {"$defs": {"b": base}}, "s", is_strict=True)
    text = shrunk_text(enforced.schema, random.Random(3))
    assert text is not None and {"a", "n"} <= json.loads(text).keys()


@given(schemas(), st.integers(0, 2**32))
@settings(max_examples=num_examples(150))
def test_any_schema(schema: Any, seed: int) -> None:
    """Also nonsense: what is taken compiles, answers under it end, and fit it where they must."""
    enforced = enforceable(schema, "s", is_strict=False)
    assert schema_error(enforced.schema) is None
    text = shrunk_text(enforced.schema, random.Random(seed))
    assert text is not None
    value = json.loads(text)
    if not enforced.left_out:
        check_fits(value, schema)
    try:
        strict = enforceable(schema, "s", is_strict=True)
    except RequestError as error:
        assert error.param is not None
        exists(schema, error.param)
    else:
        assert strict.left_out == () == enforced.left_out


def check_fits(value: Any, schema: Any) -> None:
    """By another implementation; only where that takes the schema for one."""
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except (SchemaError, RecursionError):
        return
    jsonschema.Draft202012Validator(schema).validate(value)


def exists(schema: Any, path: str) -> None:
    """Fails where a path is not in the schema."""
    if path == "s":
        return
    assert path.startswith("s.")
    found = [
        key
        for key in (schema if isinstance(schema, dict) else ())
        if path[2:] == key or path[2:].startswith((f"{key}.", f"{key}["))
    ]
    assert found, (schema, path)


def test_finding_the_fault_is_linear() -> None:
    """A hundred parts that cannot be enforced, and twice as many, by counting what is compiled."""
    import rtpjax.engine.grammar_check as check
    import server.json_schema.enforce as enforce

    def num_chars(number: int) -> int:
        seen: list[int] = []

        def counted(schema: Any) -> str | None:
            seen.append(len(json.dumps(schema)))
            return check.schema_error(schema)

        properties = {f"p{i}": {**STRING, "pattern": "(?!a)"} for i in range(number)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(enforce, "schema_error", counted)
            enforceable({"type": "object", "properties": properties}, "s", is_strict=False)
        return sum(seen)

    assert num_chars(400) < 2.5 * num_chars(200)


def test_one_line_says_what_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    parts = [LeftOut(f"tools[{i}].x\nforged", "why", "f") for i in range(30)]
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            warn_of("calls", parts)
            warn_of("answers", [])
    [record] = caplog.records
    line = record.getMessage()
    assert "\n" not in line
    assert "tools[19].x\\nforged of f (why)" in line and "and 10 more" in line
