"""Schemas as callers write them, in normal form."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import pytest

from rtpjax.errors import RequestError
from server.json_schema import normalise

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
    assert normalise(given, "s") == expected


def test_what_was_given_is_not_changed() -> None:
    given = {"properties": [{"name": "a", "schema": {"type": "null"}, "required": True}]}
    normalise(given, "s")
    assert given == {"properties": [{"name": "a", "schema": {"type": "null"}, "required": True}]}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("string", "s"),
        (False, "s"),
        ({"type": "frob"}, "s.type"),
        ({"type": ["string", "frob"]}, "s.type"),
        ({"type": 3}, "s.type"),
        ({"properties": {"a": {"items": {"type": "str"}}}}, "s.properties.a.items.type"),
        ({"properties": "a"}, "s.properties"),
        ({"properties": [{"schema": {}}]}, "s.properties[0]"),
        ({"properties": [{"name": "a", "schema": 3}]}, "s.properties[0].schema"),
        ({"properties": {"a": 3}}, "s.properties.a"),
        ({"properties": {}, "required": [1]}, "s.required"),
        ({"anyOf": {}}, "s.anyOf"),
        ({"anyOf": [{}, 7]}, "s.anyOf[1]"),
        ({"$ref": "http://example.com/s"}, "s.$ref"),
        ({"$ref": "#/$defs/a"}, "s.$ref"),
        (nested(33), "s"),
        ({"anyOf": [{}] * 5000}, "s"),
    ],
)
def test_refuses(given: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        normalise(given, "s")
    assert caught.value.param == param


def test_as_deep_and_as_large_as_allowed() -> None:
    assert normalise(nested(32), "s") == nested(32)
    assert len(normalise({"anyOf": [{}] * 4000}, "s")["anyOf"]) == 4000


def test_dates_are_those_of_the_calendar() -> None:
    pattern = re.compile(normalise({"type": "string", "format": "date"}, "s")["pattern"])
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
