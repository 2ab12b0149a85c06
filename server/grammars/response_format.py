"""`response_format` -> the engine's Grammar."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rtpjax.engine.request import Grammar
from server import limits
from server.json_schema.enforce import enforceable, warn_of
from server.protocol.body import check_count, describe, field_error

FIELD = "response_format"


def response_grammar(value: Any, *, after: str | None = None) -> Grammar | None:
    """The grammar of a request's `response_format`; None for free text.

    Args:
        value: As the caller sent it.
        after: The grammar starts after this text, such as the end of the reasoning.

    Raises:
        RequestError: The type is unknown, or a part is missing or wrong.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise field_error(FIELD, f"expected an object, found {describe(value)}")
    kind = value.get("type")
    if kind == "text":
        return None
    if not isinstance(kind, str) or kind not in _READERS:
        expected = ", ".join(("text", *_READERS))
        raise field_error(f"{FIELD}.type", f"expected one of {expected}, found {describe(kind)}")
    name, text = _READERS[kind](value)
    return Grammar(name, text, after)


def _json_object(value: dict[str, Any]) -> tuple[Any, str]:
    if "schema" not in value:
        return "json_object", ""
    return "json_schema", _schema(value["schema"], f"{FIELD}.schema", is_strict=False)


def _json_schema(value: dict[str, Any]) -> tuple[Any, str]:
    path = f"{FIELD}.json_schema"
    given = value.get("json_schema")
    if not isinstance(given, dict):
        raise field_error(path, f"expected an object, found {describe(given)}")
    is_strict = given.get("strict")
    if is_strict not in (None, True, False):
        raise field_error(f"{path}.strict", f"expected a boolean, found {describe(is_strict)}")
    if "schema" not in given:
        raise field_error(f"{path}.schema", "this field is required")
    return "json_schema", _schema(given["schema"], f"{path}.schema", is_strict=bool(is_strict))


def _schema(schema: Any, path: str, *, is_strict: bool) -> str:
    """What of a schema can be enforced. As at OpenAI, one that is not strict is no promise."""
    enforced = enforceable(schema, path, is_strict=is_strict)
    warn_of("answers", enforced.left_out)
    return json.dumps(enforced.schema)


def _text_reader(kind: str, *names: str) -> Callable[[dict[str, Any]], tuple[Any, str]]:
    """Reads a type that is one text, under the first of the names that is given."""

    def read(value: dict[str, Any]) -> tuple[Any, str]:
        name = next((n for n in names if n in value), names[0])
        text = value.get(name)
        if not isinstance(text, str) or not text:
            raise field_error(f"{FIELD}.{name}", f"expected a string, found {describe(text)}")
        return kind, text

    return read


def _structural_tag(value: dict[str, Any]) -> tuple[Any, str]:
    triggers, structures = value.get("triggers"), value.get("structures")
    for name, values in (("triggers", triggers), ("structures", structures)):
        if isinstance(values, list):
            check_count(f"{FIELD}.{name}", values, limits.MAX_STRUCTURES, name)
    if not isinstance(triggers, list) or not all(isinstance(t, str) and t for t in triggers):
        raise field_error(f"{FIELD}.triggers", "expected a list of strings")
    if not isinstance(structures, list) or not structures:
        raise field_error(f"{FIELD}.structures", f"expected a list, found {describe(structures)}")
    return "structural_tag", json.dumps([_tag(s, i, triggers) for i, s in enumerate(structures)])


def _tag(structure: Any, index: int, triggers: list[str]) -> dict[str, Any]:
    path = f"{FIELD}.structures[{index}]"
    if not isinstance(structure, dict):
        raise field_error(path, f"expected an object, found {describe(structure)}")
    begin, end = structure.get("begin"), structure.get("end", "")
    if not isinstance(begin, str) or not isinstance(end, str):
        raise field_error(path, "begin and end must be strings")
    trigger = next((t for t in triggers if begin.startswith(t)), None)
    if trigger is None:
        raise field_error(f"{path}.begin", "it starts with none of the triggers")
    schema = enforceable(structure.get("schema", {}), f"{path}.schema", is_strict=True).schema
    return {"trigger": trigger, "begin": begin, "schema": schema, "end": end}


_READERS: dict[str, Callable[[dict[str, Any]], tuple[Any, str]]] = {
    "json_object": _json_object,
    "json_schema": _json_schema,
    "regex": _text_reader("regex", "regex", "pattern"),
    "ebnf": _text_reader("ebnf", "ebnf", "grammar"),
    "lark": _text_reader("lark", "lark", "grammar"),
    "structural_tag": _structural_tag,
}
