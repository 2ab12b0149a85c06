"""One file per group of routes. A module with a `ROUTES` list is served by being in this folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import TypeVar

from pydantic import BaseModel
from sanic import Request

from server.access_log import Handler
from server.context import ServerContext

HandlerT = TypeVar("HandlerT", bound=Handler)
_BODY = "body_model"

# Method, path, handler.
Route = tuple[str, str, Handler]


def all_routes() -> Iterator[Route]:
    """The routes of every module in this folder."""
    for module in pkgutil.iter_modules(__path__):
        yield from importlib.import_module(f"{__name__}.{module.name}").ROUTES


def takes(model: type[BaseModel]) -> Callable[[HandlerT], HandlerT]:
    """Says which body a handler takes, for the OpenAPI document."""

    def mark(handler: HandlerT) -> HandlerT:
        setattr(handler, _BODY, model)
        return handler

    return mark


def body_of(handler: Handler) -> type[BaseModel] | None:
    """The model that `takes` put on a handler."""
    return getattr(handler, _BODY, None)


def context_of(request: Request) -> ServerContext:
    """What `create_app` left on the app for its routes."""
    return request.app.ctx.server
