"""50 parameter schemas of rising difficulty, as callers write them."""

from __future__ import annotations

from typing import Any

STRING, INTEGER, NUMBER, BOOLEAN = ({"type": t} for t in ("string", "integer", "number", "boolean"))


def obj(required: tuple[str, ...] | None = None, /, **properties: Any) -> dict[str, Any]:
    """An object; all properties are required by default."""
    names = list(properties) if required is None else list(required)
    return {"type": "object", "properties": properties, "required": names}


def arr(items: Any, **limits: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **limits}


def text(**keywords: Any) -> dict[str, Any]:
    return {"type": "string", **keywords}


POINT = obj(x=NUMBER, y=NUMBER)
NODE = {
    "type": "object",
    "properties": {
        "value": INTEGER,
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["value", "next"],
    "additionalProperties": False,
}
EXPRESSION = {
    "anyOf": [
        {"type": "integer"},
        obj(op={"enum": ["+", "*"]}, left={"$ref": "#/$defs/e"}, right={"$ref": "#/$defs/e"}),
    ]
}

SCHEMAS: list[dict[str, Any]] = [
    # Plain values
    {},
    {"type": "object", "properties": {}},
    obj(a=STRING),
    obj(a=INTEGER),
    obj(a=NUMBER),
    obj(a=BOOLEAN),
    obj(a={"type": "null"}),
    obj((), a=STRING, b=INTEGER),
    obj(("b",), a=STRING, b=INTEGER, c=BOOLEAN),
    obj(location=STRING, unit={"enum": ["celsius", "fahrenheit"]}),
    # Limits
    obj(n={"type": "integer", "minimum": 3, "maximum": 17}),
    obj(n={"type": "integer", "exclusiveMinimum": -5, "exclusiveMaximum": 5}),
    obj(x={"type": "number", "minimum": 0, "maximum": 1}),
    obj(n={"type": "integer", "multipleOf": 7, "minimum": 0}),
    obj(s=text(minLength=3, maxLength=5)),
    obj(s=text(minLength=40)),
    obj(s={"const": "fixed"}, t={"const": {"deep": [1, None]}}),
    obj(e={"enum": [1, "1", None, True, [2], {"k": "v"}]}),
    obj(e={"enum": ['a "quoted" one', "back\\slash", "line\nbreak", "é", "漢字", "😀"]}),
    obj(**{'k "q"': STRING, "日本": INTEGER, "a b": BOOLEAN}),
    # Arrays
    obj(a=arr(STRING)),
    obj(a=arr(INTEGER, minItems=2, maxItems=4)),
    obj(a=arr(arr(NUMBER, maxItems=3), minItems=1, maxItems=3)),
    obj(a={"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2}),
    obj(a=arr({"enum": ["x", "y"]}, maxItems=5)),
    obj(a=arr({}, maxItems=2)),
    # Objects in objects
    obj(p=POINT),
    obj(a=arr(POINT, minItems=1, maxItems=3), label=STRING),
    obj(a=obj(b=obj(c=obj(d=obj(e=BOOLEAN))))),
    {"type": "object", "additionalProperties": INTEGER, "maxProperties": 3},
    {"type": "object", "properties": {"id": INTEGER}, "additionalProperties": STRING},
    {"type": "object", "patternProperties": {"^x_[a-z]+$": BOOLEAN}, "additionalProperties": False},
    {"type": "object", "properties": {"a": INTEGER}, "required": ["a"],
     "additionalProperties": False, "description": "text", "title": "T", "x-order": 1},
    # Formats and patterns
    obj(d=text(format="date"), t=text(format="date-time")),
    obj(u=text(format="uuid"), i=text(format="ipv4")),
    obj(e=text(format="email"), h=text(format="nonsense")),
    obj(p=text(pattern=r"^\d{3}-\d{4}$")),
    obj(p=text(pattern=r"^[A-Z][a-z]+( [A-Z][a-z]+)*$", maxLength=30)),
    obj(p=text(pattern=r"^(foo|ba[rz])\.(txt|md)$"), q=text(pattern="[0-9]+")),
    # Unions
    obj(a={"type": ["string", "null"]}, b={"type": ["integer", "boolean"]}),
    obj(a={"anyOf": [STRING, POINT, arr(INTEGER)]}),
    obj(a={"oneOf": [obj(k={"const": "a"}, v=INTEGER), obj(k={"const": "b"}, w=STRING)]}),
    obj(a={"type": "string", "nullable": True}),
    {"anyOf": [obj(a=INTEGER), obj(b=STRING)]},
    {"allOf": [obj(a=INTEGER), obj(b=BOOLEAN)]},
    # References
    {"type": "object", "properties": {"p": {"$ref": "#/$defs/point"}}, "required": ["p"],
     "$defs": {"point": POINT}},
    {"type": "object", "properties": {"list": {"$ref": "#/$defs/node"}}, "required": ["list"],
     "$defs": {"node": NODE}},
    {"type": "object", "properties": {"e": {"$ref": "#/$defs/e"}}, "required": ["e"],
     "$defs": {"e": EXPRESSION}},
    # Properties as a list
    {"type": "object", "properties": [
        {"name": "search_query", "description": "words", "required": True, "schema": STRING}]},
    {"type": "object", "properties": [
        {"name": "n", "required": True, "schema": {"type": "integer", "minimum": 1}},
        {"name": "tags", "required": False, "schema": arr({"enum": ["a", "b"]})},
        {"name": "where", "required": True, "type": "object", "properties": [
            {"name": "x", "required": True, "schema": NUMBER}]}]},
]  # fmt: skip
