"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from sanic import HTTPResponse, Request
from sanic.response import json

from server.errors import ModelNotFound
from server.routes import Route, context_of


async def list_models(request: Request) -> HTTPResponse:
    """The one model that this server has, once for each of its names."""
    names = context_of(request).model_names
    return json({"object": "list", "data": [_model(request, name) for name in names]})


async def get_model(request: Request, model_id: str) -> HTTPResponse:
    """That model, by one of its names; a name can have slashes in it."""
    name, names = unquote(model_id), context_of(request).model_names
    if name not in names:
        known = ", ".join(map(repr, names))
        raise ModelNotFound(f"this server has no model {name!r}, only {known}")
    return json(_model(request, name))


def _model(request: Request, name: str) -> dict[str, Any]:
    context = context_of(request)
    engine = context.engine
    model = {
        "id": name,
        "object": "model",
        "created": engine.created,
        "owned_by": "rtpjax",
    }
    if name != context.model_names[0]:
        model["parent"] = context.model_names[0]
    if context.config.load_format != "auto":
        model["load_format"] = context.config.load_format
    if context.config.sampling_defaults:
        model["sampling_defaults"] = dict(context.config.sampling_defaults)
    if engine.is_ready:
        model["max_model_len"] = engine.max_model_len
    return model


ROUTES = [
    Route("GET", "/v1/models", list_models, "caller"),
    Route("GET", "/models", list_models, "caller"),
    Route("GET", "/v1/models/<model_id:path>", get_model, "caller"),
]
