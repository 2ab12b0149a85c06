"""What a schema says about the names of an object's members, and how many there are.

The grammar keeps apart the members that `properties` lists, and no others: those may repeat. So
names that are known come into that list.
"""

from __future__ import annotations

import re
from typing import Any

from server.json_schema.numbers import Report

_MAX_NAMES = 64
_LITERAL = re.compile(r"(?:[\w @:,-]|\\[^\w\s])+", re.ASCII)


def names_of(schema: dict[str, Any], report: Report) -> dict[str, Any]:
    """What `propertyNames` means in keywords that can be enforced."""
    names = schema["propertyNames"]
    if names in (True, {}) or (
        isinstance(names, dict) and names.get("type", "string") == "string" and _says_no_more(names)
    ):
        return {}
    others = schema.get("additionalProperties", True)
    if isinstance(names, dict) and "patternProperties" not in schema:
        listed = [names["const"]] if "const" in names else names.get("enum")
        if isinstance(listed, list) and all(isinstance(name, str) for name in listed):
            own = schema.get("properties", {})
            own = own if isinstance(own, dict) else {}
            if others is False:
                listed = [name for name in own if name in listed]
            properties = {name: own.get(name, others) for name in listed}
            return {"properties": properties, "additionalProperties": False}
        if isinstance(names.get("pattern"), str) and not schema.get("properties"):
            patterns = {names["pattern"]: others}
            if _says_no_more(names, "pattern"):
                return {"patternProperties": patterns, "additionalProperties": False}
    report("propertyNames", "this cannot be enforced")
    return {}


def _says_no_more(names: dict[str, Any], *besides: str) -> bool:
    return not any(
        key in names
        for key in ("enum", "const", "pattern", "minLength", "maxLength", "format", "not", "$ref",
                    "anyOf", "oneOf", "allOf", "if")
        if key not in besides
    )  # fmt: skip


def close_keys(schema: dict[str, Any], report: Report) -> dict[str, Any]:
    """The schema with the names that a pattern lists, and a number of members that can be."""
    if isinstance(schema.get("patternProperties"), dict):
        schema = _with_listed(schema)
    least = schema.get("minProperties", 0)
    required = schema.get("required", [])
    if least <= len(required):
        return {key: value for key, value in schema.items() if key != "minProperties"}
    listed = [name for name, part in schema.get("properties", {}).items() if part is not False]
    is_closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if is_closed and least > len(listed):
        report("minProperties", f"an object can have at most {len(listed)} different keys here")
        return {key: value for key, value in schema.items() if key != "minProperties"}
    if is_closed and least == len(listed):
        new = {key: value for key, value in schema.items() if key != "minProperties"}
        return new | {"required": list(dict.fromkeys([*required, *listed]))}
    if not is_closed and least > len(required) + 1:
        report("minProperties", "members that are not listed are counted although they may repeat")
    return schema


def _with_listed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with those names as properties that its patterns spell out."""
    properties, patterns = dict(schema.get("properties", {})), {}
    for pattern, part in schema["patternProperties"].items():
        names = _spelled_out(pattern)
        if names is None or any(name in properties for name in names):
            patterns[pattern] = part
        else:
            properties |= dict.fromkeys(names, part)
    new = {key: value for key, value in schema.items() if key != "patternProperties"}
    if properties:
        new["properties"] = properties
    return new | {"patternProperties": patterns} if patterns else new


def _spelled_out(pattern: str) -> list[str] | None:
    """The texts that a pattern like `^(a|b)$` matches, if it is one."""
    found = re.fullmatch(r"\^(?:\((?:\?:)?(.*)\)|([^|]*))\$", pattern, re.S)
    if found is None:
        return None
    texts = found[1].split("|") if found[1] is not None else [found[2]]
    if len(texts) > _MAX_NAMES or not all(_LITERAL.fullmatch(text) for text in texts):
        return None
    return list(dict.fromkeys(re.sub(r"\\(.)", r"\1", text) for text in texts))
