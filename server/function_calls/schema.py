"""JSON schemas of parameters, and of the calls that a request forces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.function_calls import Function


def as_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as a JSON schema. RTP-LLM's users write `properties` as a list:

    {"name": "q", "description": "..", "required": true, "schema": {"type": "string"}}
    """
    listed = parameters.get("properties")
    if not isinstance(listed, list):
        return dict(parameters)
    entries = [e for e in listed if isinstance(e, Mapping) and isinstance(e.get("name"), str)]
    required = [entry["name"] for entry in entries if entry.get("required") is True]
    properties = {entry["name"]: _property(entry) for entry in entries}
    schema = {"type": "object", **parameters, "properties": properties}
    return schema | {"required": required} if required else schema


def _property(entry: Mapping[str, Any]) -> dict[str, Any]:
    inner = entry.get("schema")
    rest = {k: v for k, v in entry.items() if k not in ("name", "required", "schema")}
    return {**rest, **as_schema(inner)} if isinstance(inner, Mapping) else rest


def forced_call_grammar(
    functions: Sequence[Function], named: str | None, *, is_parallel: bool
) -> dict[str, Any]:
    """The JSON schema of an answer that must be calls: a list of them.

    Args:
        functions: Those offered.
        named: The one that must be called, or None for any of them.
        is_parallel: Whether the list may have more than one.
    """
    allowed = [f for f in functions if named in (None, f.name)]
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function.name},
                "arguments": {"$ref": f"#/$defs/{_pointer(function.name)}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in allowed
    ]
    schema: dict[str, Any] = {
        "type": "array",
        "items": calls[0] if len(calls) == 1 else {"anyOf": calls},
        "minItems": 1,
        # The schemas live one level deeper than their own references say.
        "$defs": {f.name: _moved(f.schema, f"#/$defs/{_pointer(f.name)}") for f in allowed},
    }
    if named is not None or not is_parallel:
        schema["maxItems"] = 1
    return schema


def _pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _moved(schema: Any, root: str) -> Any:
    """The schema with its references pointing below `root`."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: _moved(value, root) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved
