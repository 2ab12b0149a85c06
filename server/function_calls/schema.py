"""JSON schemas of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
