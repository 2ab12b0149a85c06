"""The OpenAPI document, and a page that shows it: both made from the routes and their models."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from server.routes import Route, all_routes, body_of

_REF = "#/components/schemas/{model}"
_ERRORS = {
    "400": "The request cannot be honoured; the message names the field.",
    "401": "The API key is missing or wrong.",
    "429": "Too many requests wait; try again after Retry-After seconds.",
    "503": "The server is loading or shutting down.",
}

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>rtpjax API</title>
<style>
body {{ font: 15px/1.5 system-ui; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
summary {{ cursor: pointer; padding: .3rem 0 }} code {{ font-size: 14px }}
table {{ border-collapse: collapse; margin: .5rem 1rem }}
td {{ border-top: 1px solid #ccc; padding: .2rem .8rem .2rem 0; vertical-align: top }}
</style>
<h1>rtpjax API</h1>
<p>The same as a document for tools: <a href="openapi.json">openapi.json</a>.</p>
{routes}
</html>"""


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document of all routes."""
    routes = list(all_routes())
    models = {body for route in routes if (body := body_of(route.handler)) is not None}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema([(m, "validation") for m in ordered], ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rtpjax",
            "version": "1",
            "description": "LLM inference with the APIs of OpenAI, RTP-LLM and Anthropic. A field "
            "that would change the answer and is not honoured is a 400.",
        },
        "paths": _paths(routes),
        "components": {
            "schemas": schemas.get("$defs", {}),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


@cache
def page() -> str:
    """The document as HTML without scripts, which needs nothing from elsewhere."""
    found = document()
    routes = "\n".join(
        _shown(method, path, operation, found["components"]["schemas"])
        for path, operations in found["paths"].items()
        for method, operation in operations.items()
    )
    return _PAGE.format(routes=routes)


def _paths(routes: Iterable[Route]) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for method, path, handler, _ in sorted(routes, key=lambda route: route.path):
        variables = re.findall(r"<(\w+)(?::\w+)?>", path)
        operation: dict[str, Any] = {
            "summary": (inspect.getdoc(handler) or "").partition("\n")[0],
            "operationId": f"{method.lower()}_{re.sub(r'[^a-z0-9]+', '_', path.lower())}",
            "responses": {"200": {"description": "The answer."}}
            | {status: {"description": text} for status, text in _ERRORS.items()},
        }
        if variables:
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in variables
            ]
        body = body_of(handler)
        if body is not None:
            schema = {"$ref": _REF.format(model=body.__name__)}
            content = {"application/json": {"schema": schema}}
            operation["requestBody"] = {"required": True, "content": content}
        path = re.sub(r"<(\w+)(?::\w+)?>", r"{\1}", path)
        paths.setdefault(path, {})[method.lower()] = operation
    return paths


def _shown(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    head = f"<code>{method.upper()} {html.escape(path)}</code> {html.escape(operation['summary'])}"
    if "requestBody" not in operation:
        return f"<p>{head}</p>"
    ref = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = schemas[ref.rpartition("/")[2]]
    rows = "".join(_rows(schema))
    return f"<details><summary>{head}</summary><table>{rows}</table></details>"


def _rows(schema: dict[str, Any]) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        need = "required" if name in schema.get("required", ()) else ""
        shown = f"<code>{html.escape(name)}</code>", html.escape(_type(field)), need
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in shown) + "</tr>"


def _type(field: dict[str, Any]) -> str:
    """A field's schema in a few words."""
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"] if each.get("type") != "null")
    if "enum" in field:
        return " or ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    words = field.get("type", "any")
    if words == "array":
        words = f"list of {_type(field.get('items', {}))}"
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum", field.get("exclusiveMaximum"))
    if low is not None and high is not None:
        words += f" {low} to {high}"
    default = field.get("default")
    return f"{words}, default {default}" if default is not None else words
