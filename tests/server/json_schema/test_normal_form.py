"""Schemas as callers write them, in normal form."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import pytest

from rtpjax.errors import RequestError
from server.json_schema.enforce import enforceable
from server.json_schema.normal_form import normal_form
from server.json_schema.references import follow

CLOSED = {"additionalProperties": False}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (True, {}),
        ({}, {}),
        ({"type": "string", "format": "nonsense"}, {"type": "string"}),
        ({"type": "string", "format": "uuid"}, {"type": "string", "format": "uuid"}),
        ({"type": "array", "uniqueItems": False}, {"type": "array"}),
        ({"x-guidance": {"lenient": True}, "type": "null"}, {"type": "null"}),
        ({"type": "integer", "nullable": True}, {"type": "integer"}),
        (
            {"properties": {"a": {"type": "string", "required": True}, "b": True}},
            {"properties": {"a": {"type": "string"}, "b": True}, "required": ["a"], **CLOSED},
        ),
        (
            {
                "properties": [
                    {"name": "q", "description": "d", "required": True, "schema": {"type": "null"}},
                    {"name": "n", "type": "integer"},
                ]
            },
            {
                "properties": {"q": {"type": "null"}, "n": {"type": "integer"}},
                "required": ["q"],
                **CLOSED,
            },
        ),
        # What says nothing, or says it in another way.
        ({"type": "object", "propertyNames": {"type": "string"}}, {"type": "object"}),
        ({"type": "array", "uniqueItems": True, "maxItems": 1}, {"type": "array", "maxItems": 1}),
        ({"title": "T", "deprecated": True, "x-order": 1, "default": 1}, {}),
        ({"if": {"type": "null"}}, {}),
        ({"contains": {}, "minContains": 0}, {}),
        ({"not": False, "unevaluatedItems": {}}, {}),
        ({"minimum": 1, "exclusiveMinimum": True}, {"exclusiveMinimum": 1}),
        ({"minimum": 1, "exclusiveMinimum": False}, {"minimum": 1}),
        (
            {"items": [{"type": "null"}], "additionalItems": False},
            {"prefixItems": [{"type": "null"}], "items": False},
        ),
        ({"type": "number", "maximum": 1.7976931348623157e308}, {"type": "number"}),
        ({"maximum": 3.4e38}, {"maximum": 2**63 - 1024}),
        ({"type": "integer", "minimum": 2**53 + 1}, {"type": "integer", "minimum": 2**53 + 2}),
        (
            {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            {"type": "integer", "minimum": 1024 - 2**63, "maximum": 2**63 - 1024},
        ),
        ({"minLength": 2.0}, {"minLength": 2}),
        ({"type": "STRING"}, {"type": "string"}),
        ({"type": "dict"}, {"type": "object"}),
        ({"type": "any"}, {}),
        ({"type": ["string", None]}, {"type": ["string", "null"]}),
        (
            {"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "null"}},
            {"properties": {"a": {"type": "null"}, "b": {"type": "null"}}, **CLOSED},
        ),
        (
            {"patternProperties": {"^(a|b\\.)$": {"type": "null"}}, "minProperties": 2, **CLOSED},
            {
                "properties": {"a": {"type": "null"}, "b.": {"type": "null"}},
                "required": ["a", "b."],
                **CLOSED,
            },
        ),
        (
            {"properties": {"a": {}}, "minProperties": 1},
            {"properties": {"a": {}}, "required": ["a"], **CLOSED},
        ),
        # Others are spoken of, or may be listed elsewhere: it stays open.
        (
            {"properties": {}, "patternProperties": {"^a": {}}},
            {"properties": {}, "patternProperties": {"^a": {}}, "required": []},
        ),
        (
            {"properties": {"a": {}}, "required": ["b"]},
            {"properties": {"a": {}}, "required": ["b"]},
        ),
        (
            {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
            {
                "allOf": [
                    {"properties": {"a": {}}, "required": []},
                    {"properties": {"b": {}}, "required": []},
                ]
            },
        ),
        (
            {"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]},
            {
                "properties": {"a": {}},
                "required": [],
                "anyOf": [{"properties": {"b": {}}, "required": []}],
            },
        ),
    ],
)
def test_normal_form(given: Any, expected: dict[str, Any]) -> None:
    form = normal_form(given)
    assert form.whole == expected
    assert not form.left_out


def test_what_was_given_is_not_changed() -> None:
    given = {"properties": [{"name": "a", "schema": {"type": "null"}, "required": True}]}
    normal_form(given)
    assert given == {"properties": [{"name": "a", "schema": {"type": "null"}, "required": True}]}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("string", "s"),
        (False, "s"),
        ({"type": "frob"}, "s.type"),
        ({"type": ["string", "frob"]}, "s.type"),
        ({"type": 3}, "s.type"),
        ({"properties": {"a": {"items": {"type": "frob"}}}}, "s.properties.a.items.type"),
        ({"properties": "a"}, "s.properties"),
        ({"properties": [{"schema": {}}]}, "s.properties[0]"),
        ({"properties": [{"name": "a", "schema": 3}]}, "s.properties[0].schema"),
        ({"properties": {"a": 3}}, "s.properties.a"),
        ({"properties": {}, "required": [1]}, "s.required"),
        ({"anyOf": {}}, "s.anyOf"),
        ({"anyOf": [{}, 7]}, "s.anyOf[1]"),
        ({"$ref": "http://example.com/s"}, "s.$ref"),
        ({"$ref": "#/$defs/a"}, "s.$ref"),
        (nested(33), "s" + 33 * ".items"),
        ({"anyOf": [{}] * 5000}, "s.anyOf[4095]"),
    ],
)
def test_refuses(given: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        enforceable(given, "s", is_strict=True)
    assert caught.value.param == param
    if isinstance(given, dict | bool):
        assert [part.path for part in enforceable(given, "s", is_strict=False).left_out] == [param]


def test_as_deep_and_as_large_as_allowed() -> None:
    assert normal_form(nested(32)).whole == nested(32)
    assert len(normal_form({"anyOf": [{}] * 4000}).schema["anyOf"]) == 4000


@pytest.mark.parametrize(
    ("reference", "place"),
    [
        ("#/definitions/Bar%3Cstring%3E", ("definitions", "Bar<string>")),
        ("#/definitions/Bar<string>", ("definitions", "Bar<string>")),
        ("#/definitions/a~1b~0c", ("definitions", "a/b~c")),
        ("#/definitions/a~1b%7E0c", ("definitions", "a/b~c")),
        ("#/definitions/%C3%BC", ("definitions", "ü")),
        ("#/definitions/", ("definitions", "")),
        ("#/allOf/1", ("allOf", 1)),
        ("#there", ("definitions", "ü")),
        ("http://x.y/z", ("definitions", "")),
        ("http://a.b/c#/definitions/%C3%BC", ("definitions", "ü")),
    ],
)
def test_references(reference: str, place: tuple[Any, ...]) -> None:
    parts: dict[str, Any] = {
        "Bar<string>": {"const": 1},
        "a/b~c": {"const": 2},
        "ü": {"const": 3, "$anchor": "there"},
        "": {"const": 4, "$id": "http://x.y/z"},
    }
    root: dict[str, Any] = {
        "$id": "http://a.b/c",
        "definitions": parts,
        "allOf": [{}, {"const": 5}],
    }
    part: Any = root
    for name in place:
        part = part[name]
    assert follow(reference, root) is part
    form = normal_form({**root, "allOf": [{"$ref": reference}, root["allOf"][1]]})
    assert form.schema["allOf"][0] == {"$ref": "#/$defs/0"}
    assert form.definitions["0"] == {"const": part["const"]}


@pytest.mark.parametrize(
    "reference",
    ["#/definitions/b", "#/definitions/a/const/x", "#nowhere", "http://x.y/", "x.json#/a", 3, None,
     "#/list/1", "#/list/-1", "#/list/x"],
)  # fmt: skip
def test_references_that_lead_nowhere(reference: Any) -> None:
    with pytest.raises(LookupError):
        follow(reference, {"definitions": {"a": {"const": 1}}, "list": [{}]})


def test_dates_are_those_of_the_calendar() -> None:
    pattern = re.compile(normal_form({"type": "string", "format": "date"}).schema["pattern"])
    for year in (0, 1, 4, 100, 400, 1900, 2000, 2023, 2024, 2100, 9999):
        for month in range(14):
            for day in range(33):
                text = f"{year:04}-{month:02}-{day:02}"
                assert (pattern.search(text) is not None) == is_date(text), text


def is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
