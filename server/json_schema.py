"""JSON schemas as callers write them -> schemas that the grammar compiler takes, or a clear 400.

Whatever the new schema allows, the old one allows too:

- `properties` as a list of `{"name", "schema", "required"}` (RTP-LLM's users write them so) becomes
  a dict, and `required: true` inside a property moves up;
- formats that nothing checks, `uniqueItems: false` and `nullable` (OpenAPI's, no JSON schema) are
  dropped: they demand nothing; dates become patterns;
- an object that lists its properties and does not speak of others gets no others. Weak models would
  go on inventing them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server import limits
from server.protocol.body import describe, field_error, shortened

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
)  # checked by the grammar

# The compiler's own dates have a year 0 and a 30th of February.
_YEAR = r"(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_DIVISIBLE_BY_4 = r"(0[48]|[2468][048]|[13579][26])"
_DATE = (
    rf"({_YEAR}-((01|03|05|07|08|10|12)-(0[1-9]|[12][0-9]|3[01])"
    r"|(04|06|09|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    rf"|([0-9]{{2}}{_DIVISIBLE_BY_4}|{_DIVISIBLE_BY_4}00)-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_ZONE = r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}{_ZONE}$",
    "date-time": f"^{_DATE}T{_TIME}{_ZONE}$",
}

_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = (
    "items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains",
    "propertyNames", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_COMBINED = frozenset({"anyOf", "oneOf", "allOf", "$ref"})
_SAYS_OTHERS = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties"})


def normalise(schema: Any, path: str) -> dict[str, Any]:
    """A copy of the schema in the form above.

    Args:
        schema: From a request.
        path: The field it stands in, for errors.

    Raises:
        RequestError: It is no schema, has an unknown type or a dangling reference, is too large or
            too deep.
    """
    if schema is True or schema == {}:
        return {}
    if not isinstance(schema, dict):
        raise field_error(path, f"expected a JSON schema (an object), found {describe(schema)}")
    return _Normaliser(path, schema).schema(schema, path, depth=0)


class _Normaliser:
    """One walk over one schema."""

    def __init__(self, path: str, root: dict[str, Any]):
        self._path = path
        self._root = root
        self._num_schemas = 0
        # Under allOf several schemas describe one object: none may forbid what another one lists.
        self._closes_objects = not _has_key(root, "allOf", 4 * limits.MAX_SCHEMA_DEPTH)

    def schema(self, schema: Any, path: str, *, depth: int, closes: bool = True) -> Any:
        """The schema, and all in it, in normal form."""
        self._num_schemas += 1
        if depth > limits.MAX_SCHEMA_DEPTH:
            reason = f"the schema is nested more than {limits.MAX_SCHEMA_DEPTH} deep"
            raise field_error(self._path, reason)
        if self._num_schemas > limits.MAX_SCHEMAS:
            raise field_error(self._path, f"the schema has more than {limits.MAX_SCHEMAS} parts")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise field_error(path, f"expected a JSON schema, found {describe(schema)}")
        new = {key: value for key, value in schema.items() if key != "x-guidance"}
        self._check_type(new, path)
        self._check_ref(new, path)
        if "properties" in new:
            new |= _named_properties(new, path)
        self._descend(new, path, depth + 1)
        if closes and self._closes_objects and _lists_all(new):
            new["additionalProperties"] = False
        if new.get("format") not in FORMATS:
            new.pop("format", None)
        elif new["format"] in _PATTERNS and "pattern" not in new:
            new["pattern"] = _PATTERNS[new.pop("format")]
        if new.get("uniqueItems") is False:
            del new["uniqueItems"]
        new.pop("nullable", None)
        return new

    def _descend(self, schema: dict[str, Any], path: str, depth: int) -> None:
        is_closed_below = "properties" not in schema
        for key in schema.keys() & set(_BY_NAME):
            schema[key] = self._each(schema[key], dict, f"{path}.{key}", depth)
        for key in schema.keys() & set(_LISTS):
            parts = self._each(schema[key], list, f"{path}.{key}", depth, closes=is_closed_below)
            schema[key] = list(parts.values())
        for key in schema.keys() & set(_SINGLE):
            if key == "items" and isinstance(schema[key], list):
                schema[key] = list(self._each(schema[key], list, f"{path}.{key}", depth).values())
            else:
                schema[key] = self.schema(schema[key], f"{path}.{key}", depth=depth)

    def _each(
        self, parts: Any, kind: type, path: str, depth: int, *, closes: bool = True
    ) -> dict[Any, Any]:
        if not isinstance(parts, kind):
            expected = "an object" if kind is dict else "a list"
            raise field_error(path, f"expected {expected} of schemas, found {describe(parts)}")
        where: Callable[[Any], str] = (
            (lambda key: f"{path}.{shortened(key)}")
            if kind is dict
            else (lambda key: f"{path}[{key}]")
        )
        items = parts.items() if isinstance(parts, dict) else enumerate(parts)
        return {
            key: self.schema(part, where(key), depth=depth, closes=closes) for key, part in items
        }

    def _check_type(self, schema: dict[str, Any], path: str) -> None:
        kind = schema.get("type", [])
        for name in kind if isinstance(kind, list) else [kind]:
            if not isinstance(name, str) or name not in TYPES:
                expected = f"expected one of {', '.join(TYPES)}"
                raise field_error(f"{path}.type", f"{expected}, found {describe(name)}")

    def _check_ref(self, schema: dict[str, Any], path: str) -> None:
        ref = schema.get("$ref")
        if ref is None:
            return
        if not isinstance(ref, str) or not ref.startswith("#"):
            reason = "only references into the same schema ('#/...') are followed"
            raise field_error(f"{path}.$ref", f"{reason}, found {describe(ref)}")
        target: Any = self._root
        for name in ref.removeprefix("#").split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, dict) else None
        if not isinstance(target, (dict, bool)):
            raise field_error(f"{path}.$ref", f"{ref!r} is not in the schema")


def _has_key(value: Any, key: str, depth: int) -> bool:
    if depth < 0:
        return False
    if isinstance(value, dict):
        return key in value or any(_has_key(v, key, depth - 1) for v in value.values())
    return isinstance(value, list) and any(_has_key(v, key, depth - 1) for v in value)


def _named_properties(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """`properties` as a dict, and `required` as a list of names."""
    properties, required = schema["properties"], schema.get("required")
    given = required if isinstance(required, list) else []
    if not all(isinstance(name, str) for name in given):
        raise field_error(f"{path}.required", "expected a list of names")
    names = dict.fromkeys(given)
    if isinstance(properties, list):
        properties = dict(_pair(p, f"{path}.properties[{i}]") for i, p in enumerate(properties))
    if not isinstance(properties, dict):
        expected = "expected an object or a list"
        raise field_error(f"{path}.properties", f"{expected}, found {describe(properties)}")
    found: dict[str, Any] = {}
    for name, value in properties.items():
        if isinstance(value, dict) and isinstance(value.get("required"), bool):
            if value["required"]:
                names[name] = None
            value = {k: v for k, v in value.items() if k != "required"}
        found[name] = value
    return {"properties": found, "required": list(names)}


def _pair(item: Any, path: str) -> tuple[str, Any]:
    """One entry of list-form properties: its name, and its schema with `required` left in."""
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise field_error(path, f"expected an object with a name, found {describe(item)}")
    if "schema" not in item:
        return item["name"], {k: v for k, v in item.items() if k != "name"}
    if not isinstance(item["schema"], dict):
        raise field_error(f"{path}.schema", f"expected an object, found {describe(item['schema'])}")
    return item["name"], item["schema"] | {"required": bool(item.get("required"))}


def _lists_all(schema: dict[str, Any]) -> bool:
    """Whether an object's properties are all listed here."""
    if "properties" not in schema or schema.keys() & (_COMBINED | _SAYS_OTHERS):
        return False
    return set(schema.get("required", ())) <= schema["properties"].keys()
