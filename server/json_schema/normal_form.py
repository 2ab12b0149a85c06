"""JSON schemas as callers write them -> schemas that the grammar compiler takes.

Whatever the new schema allows, the old one allows too, but for what is left out. That is told: each
keyword that cannot be enforced, each value that is no schema.

- `properties` as a list of `{"name", "schema", "required"}` (RTP-LLM's users write them so) becomes
  a dict, and `required: true` inside a property moves up;
- what says nothing is dropped: annotations, formats that nothing checks, `uniqueItems: false`,
  `propertyNames: {"type": "string"}`, `nullable` (OpenAPI's, no JSON schema);
- dates become patterns;
- what can be said in other keywords is: older drafts' tuples and bounds, names of properties that
  are listed in a pattern, items of a set that are few;
- the parts that references name stand in `$defs`, the others of that name are gone;
- an object that lists its properties and does not speak of others gets no others. Weak models would
  go on inventing them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server import limits
from server.json_schema import numbers
from server.json_schema.object_keys import close_keys, names_of
from server.json_schema.references import follow, place_of
from server.json_schema.strings import format_of
from server.json_schema.types import TYPES, kind_of
from server.protocol.body import describe

_COMBINED = frozenset({"anyOf", "oneOf", "allOf", "$ref"})
_SAYS_OTHERS = frozenset({"additionalProperties", "patternProperties"})
_ABOUT_MEMBERS = _SAYS_OTHERS | {"properties", "required"}
_COUNTS = (
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
)  # fmt: skip
# What these say if it is this; whatever else they say cannot be enforced.
_NOTHING: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    "contains": lambda value, schema: schema.get("minContains") == 0,
    "not": lambda value, schema: value is False,
    "then": lambda value, schema: "if" not in schema or value in (True, {}),
    "else": lambda value, schema: "if" not in schema or value in (True, {}),
    "dependentRequired": lambda value, schema: not value,
    "dependentSchemas": lambda value, schema: not value,
    "dependencies": lambda value, schema: not value,
    "unevaluatedItems": lambda value, schema: value in (True, {}),
    "unevaluatedProperties": lambda value, schema: value in (True, {}),
    "$dynamicRef": lambda value, schema: False,
    "$recursiveRef": lambda value, schema: False,
}
_CANNOT = "this cannot be enforced"


# Where something stands in a schema: keywords, names and numbers.
Place = tuple[str | int, ...]


@dataclass(slots=True)
class NormalForm:
    """A schema in normal form.

    Attributes:
        schema: Without the parts that it refers to.
        definitions: Those parts, by the name under which they will stand in `$defs`.
        places: Where each of them stood.
        left_out: What is no part of it: where it stood, and why.
    """

    schema: dict[str, Any]
    definitions: dict[str, Any]
    places: dict[str, Place]
    left_out: list[tuple[Place, str]]

    @property
    def whole(self) -> dict[str, Any]:
        """The schema with the parts that it refers to."""
        return {**self.schema, "$defs": self.definitions} if self.definitions else self.schema


def normal_form(schema: Any, *, is_strict: bool = False) -> NormalForm:
    """The schema in the form above.

    Args:
        schema: From a request.
        is_strict: Types go by their names in JSON schema alone.
    """
    walk = _Walk(schema, is_strict=is_strict)
    new = walk.schema(schema, (), depth=0)
    if isinstance(new, bool):
        new = {} if new else {"enum": []}
    definitions = walk.definitions()
    return NormalForm(new, definitions, walk.places, walk.left_out)


class _Walk:
    """One walk over one schema.

    Attributes:
        left_out, places: As in NormalForm, so far.
    """

    def __init__(self, root: Any, *, is_strict: bool):
        self.left_out: list[tuple[Place, str]] = []
        self.places: dict[str, Place] = {}
        self._root = root
        self._is_strict = is_strict
        self._num_schemas = 0
        self._is_too_large = False
        self._names: dict[int, str] = {}
        self._targets: list[Any] = []
        # Where several schemas describe one object none may forbid what another one lists.
        self._closes_objects = not _combines(root, 4 * limits.MAX_SCHEMA_DEPTH)

    def schema(self, schema: Any, at: Place, *, depth: int, closes: bool = True) -> Any:
        """The schema, and all in it, in normal form."""
        self._num_schemas += 1
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            return self._any(at, f"expected a JSON schema, found {describe(schema)}")
        if depth > limits.MAX_SCHEMA_DEPTH:
            return self._any(at, f"nested more than {limits.MAX_SCHEMA_DEPTH} deep")
        if self._num_schemas > limits.MAX_SCHEMAS:
            if not self._is_too_large:
                self._leave_out(at, f"the schema has more than {limits.MAX_SCHEMAS} parts")
            self._is_too_large = True
            return {}
        if schema.get("not") in (True, {}) and "not" in schema:
            return False
        new = self._keywords(schema, at, depth + 1)
        if closes and self._closes_objects and _lists_all(new):
            new["additionalProperties"] = False
        return close_keys(new, self._reporter(at))

    def definitions(self) -> dict[str, Any]:
        """The parts that references name; in them there may be more references."""
        found: dict[str, Any] = {}
        while len(found) < len(self._targets):
            name = str(len(found))
            found[name] = self.schema(self._targets[len(found)], self.places[name], depth=0)
        return found

    def _keywords(self, given: dict[str, Any], at: Place, depth: int) -> dict[str, Any]:
        given = self._rewritten(given, at)
        report = self._reporter(at)
        new: dict[str, Any] = {}
        is_closed_below = "properties" not in given
        for key, value in given.items():
            where = (*at, key)
            if key == "$ref":
                new |= self._ref(value, where)
            elif key == "type":
                new |= self._type(value, where)
            elif key in ("properties", "patternProperties"):
                new |= self._by_name(key, value, where, depth)
            elif key in ("anyOf", "oneOf", "allOf", "prefixItems"):
                closes = key == "prefixItems" or is_closed_below
                new |= self._list(key, value, where, depth, closes=closes)
            elif key in ("items", "additionalProperties"):
                new[key] = self.schema(value, where, depth=depth)
            elif key in _COUNTS:
                new |= self._count(key, value, where)
            elif key in ("enum", "const"):
                new |= self._values(key, value, where)
            elif key == "required":
                new |= self._required(value, where)
            elif key in _NOTHING and not _NOTHING[key](value, given):
                self._leave_out(where, _CANNOT)
        new |= format_of(given, report)
        return new | numbers.bounds(given | {"type": new.get("type")}, report)

    def _rewritten(self, given: dict[str, Any], at: Place) -> dict[str, Any]:
        """The keywords in those of the newest draft."""
        new = dict(given)
        if isinstance(new.get("properties"), list | dict):
            new |= self._named_properties(new, at)
        if isinstance(new.get("items"), list):
            new["prefixItems"] = new.pop("items")
            if "additionalItems" in new:
                new["items"] = new["additionalItems"]
        is_alone = not new.keys() & (_COMBINED | {"if", "dependentSchemas"})
        for name, other in (
            ("unevaluatedProperties", "additionalProperties"),
            ("unevaluatedItems", "items"),
        ):
            says_something = new.get(name, True) not in (True, {})
            if is_alone and says_something and other not in new:
                new[other] = new.pop(name)
        if new.get("uniqueItems") is True:
            new |= self._unique_items(new, at)
        if "propertyNames" in new:
            new |= names_of(new, self._reporter(at))
        return new

    def _unique_items(self, given: dict[str, Any], at: Place) -> dict[str, Any]:
        """Of a set with few possible items the grammar at least counts them."""
        items = given.get("items")
        values = items.get("enum") if isinstance(items, dict) else None
        number = len(values) if isinstance(values, list) and "prefixItems" not in given else None
        most = [n for n in (number, given.get("maxItems")) if isinstance(n, int)]
        if min(most, default=2) > 1:
            self._leave_out((*at, "uniqueItems"), _CANNOT)
        return {"maxItems": min(most)} if most else {}

    def _ref(self, reference: Any, where: Place) -> dict[str, Any]:
        try:
            target = follow(reference, self._root)
        except (LookupError, ValueError):
            return self._drop(where, f"{describe(reference)} is not in the schema")
        if not isinstance(target, (dict, bool)):
            return self._drop(where, f"expected a JSON schema there, found {describe(target)}")
        key = id(target) if isinstance(target, dict) else int(target)
        if key not in self._names:
            if len(self._targets) == limits.MAX_DEFINITIONS:
                most = limits.MAX_DEFINITIONS
                return self._drop(where, f"the schema refers to more than {most} parts of itself")
            self._names[key] = str(len(self._targets))
            self.places[self._names[key]] = place_of(reference)
            self._targets.append(target)
        return {"$ref": f"#/$defs/{self._names[key]}"}

    def _type(self, value: Any, where: Place) -> dict[str, Any]:
        names = value if isinstance(value, list) else [value]
        kinds: list[str] = []
        for name in names:
            kind = "null" if name is None and len(names) > 1 else kind_of(name)
            if kind is None or (self._is_strict and name not in TYPES):
                expected = f"expected one of {', '.join(TYPES)}"
                return self._drop(where, f"{expected}, found {describe(name)}")
            if not kind:
                return {}
            if kind not in kinds:
                kinds.append(kind)
        if not kinds:
            return self._drop(where, "no type is allowed")
        return {"type": kinds if len(kinds) > 1 else kinds[0]}

    def _by_name(self, key: str, value: Any, where: Place, depth: int) -> dict[str, Any]:
        if not isinstance(value, dict):
            return self._drop(where, f"expected an object of schemas, found {describe(value)}")
        parts = {
            name: self.schema(part, (*where, name), depth=depth) for name, part in value.items()
        }
        return {key: parts}

    def _list(
        self, key: str, value: Any, where: Place, depth: int, *, closes: bool
    ) -> dict[str, Any]:
        if not isinstance(value, list) or not value:
            return self._drop(where, f"expected a list of schemas, found {describe(value)}")
        return {
            key: [
                self.schema(part, (*where, i), depth=depth, closes=closes)
                for i, part in enumerate(value)
            ]
        }

    def _count(self, key: str, value: Any, where: Place) -> dict[str, Any]:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or value < 0 or value != value // 1:
            return self._drop(where, f"expected a number of at least 0, found {describe(value)}")
        if value <= limits.MAX_SCHEMA_COUNT:
            return {key: int(value)}
        if key.startswith("max"):
            return {key: limits.MAX_SCHEMA_COUNT}
        return self._drop(where, f"at most {limits.MAX_SCHEMA_COUNT} can be demanded")

    def _values(self, key: str, value: Any, where: Place) -> dict[str, Any]:
        values = [value] if key == "const" else value
        if not isinstance(values, list):
            return self._drop(where, f"expected a list of values, found {describe(value)}")
        if not values:
            return self._drop(where, "no value is allowed")
        if not all(map(numbers.is_exact, values)):
            return self._drop(where, "a number in it has more digits than can be told apart")
        return {key: value}

    def _required(self, value: Any, where: Place) -> dict[str, Any]:
        if not isinstance(value, list):
            if not isinstance(value, bool):  # (that is an old draft's, or RTP-LLM's)
                self._leave_out(where, f"expected a list of names, found {describe(value)}")
            return {}
        if not all(isinstance(name, str) for name in value):
            self._leave_out(where, "expected a list of names")
        return {"required": list(dict.fromkeys(n for n in value if isinstance(n, str)))}

    def _named_properties(self, given: dict[str, Any], at: Place) -> dict[str, Any]:
        """`properties` as a dict, and `required` as a list of names."""
        properties, required = given["properties"], given.get("required")
        names = required if isinstance(required, list) else []
        marked: list[str] = []
        if isinstance(properties, list):
            where = (*at, "properties")
            pairs = [self._pair(p, (*where, i)) for i, p in enumerate(properties)]
            properties = dict(pair for pair in pairs if pair is not None)
        found: dict[str, Any] = {}
        for name, value in properties.items():
            if isinstance(value, dict) and isinstance(value.get("required"), bool):
                marked += [name] * value["required"]
                value = {k: v for k, v in value.items() if k != "required"}
            found[name] = value
        is_said = required is not None and not isinstance(required, list | bool)
        return {"properties": found, "required": required if is_said else [*names, *marked]}

    def _pair(self, item: Any, at: Place) -> tuple[str, Any] | None:
        """One entry of list-form properties: its name, and its schema with `required` left in."""
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            self._leave_out(at, f"expected an object with a name, found {describe(item)}")
            return None
        if "schema" not in item:
            return item["name"], {k: v for k, v in item.items() if k != "name"}
        if not isinstance(item["schema"], dict):
            found = describe(item["schema"])
            self._leave_out((*at, "schema"), f"expected an object, found {found}")
            return item["name"], {"required": bool(item.get("required"))}
        return item["name"], item["schema"] | {"required": bool(item.get("required"))}

    def _leave_out(self, at: Place, reason: str) -> None:
        self.left_out.append((at, reason))

    def _drop(self, at: Place, reason: str) -> dict[str, Any]:
        """No keyword, in the place of one that is left out."""
        self._leave_out(at, reason)
        return {}

    _any = _drop  # a schema that allows all, in the place of one that is none

    def _reporter(self, at: Place) -> Callable[[str, str], None]:
        return lambda key, reason: self._leave_out((*at, key), reason)


def _combines(value: Any, depth: int) -> bool:
    """Whether there is an allOf somewhere, or a reference beside other keywords about objects."""
    if depth < 0:
        return False
    if isinstance(value, dict):
        is_beside = "$ref" in value and not _ABOUT_MEMBERS.isdisjoint(value)
        return is_beside or "allOf" in value or any(_combines(v, depth - 1) for v in value.values())
    return isinstance(value, list) and any(_combines(v, depth - 1) for v in value)


def _lists_all(schema: dict[str, Any]) -> bool:
    """Whether an object's properties are all listed here."""
    if "properties" not in schema or schema.keys() & (_COMBINED | _SAYS_OTHERS):
        return False
    return set(schema.get("required", ())) <= schema["properties"].keys()
