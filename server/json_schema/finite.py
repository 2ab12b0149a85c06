"""Whether an answer that follows a schema can end: some part of it may ask for itself for ever."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

_SCALARS = frozenset({"string", "number", "integer", "boolean", "null"})
_ALL = ("null", "object", "array")


def endless(definitions: Mapping[str, Any]) -> set[str]:
    """The names of those definitions that no finite value fits.

    Args:
        definitions: The `$defs` of a schema in normal form.
    """
    known: set[str] = set()
    while True:
        found = {name for name, part in definitions.items() if _ends(part, known)}
        if found == known:
            return set(definitions) - known
        known = found


def _ends(schema: Any, known: Set[str]) -> bool:
    """Whether a finite value fits, if one fits the definitions that are known to have one.

    That no value fits at all is another matter, which the compiler notices.
    """
    if isinstance(schema, bool):
        return True
    if "$ref" in schema and schema["$ref"].rpartition("/")[2] not in known:
        return False
    if not all(_ends(part, known) for part in schema.get("allOf", ())):
        return False
    for key in ("anyOf", "oneOf"):
        if key in schema and not any(_ends(part, known) for part in schema[key]):
            return False
    if "enum" in schema or "const" in schema:
        return True
    kinds = schema.get("type", _ALL)
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return any(_kind_ends(kind, schema, known) for kind in kinds)


def _kind_ends(kind: str, schema: Mapping[str, Any], known: Set[str]) -> bool:
    if kind in _SCALARS:
        return True
    others = schema.get("additionalProperties" if kind == "object" else "items", True)
    if kind == "array":
        least, first = schema.get("minItems", 0), schema.get("prefixItems", [])
        needed, free = first[:least], [others]
        is_more = least > len(first)
    else:
        listed, required = schema.get("properties", {}), set(schema.get("required", []))
        needed = [listed.get(name, others) for name in required]
        free = [listed[name] for name in listed if name not in required]
        free += [*schema.get("patternProperties", {}).values(), others]
        is_more = schema.get("minProperties", 0) > len(needed)
    if not all(_ends(part, known) for part in needed):
        return False
    return not is_more or any(_ends(part, known) for part in free if part is not False)
