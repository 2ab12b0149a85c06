"""One file per group of routes. A module with a `ROUTES` list is served by being in this folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel
from sanic import Request

from server.access_log import Handler
from server.auth import Access
from server.context import ServerContext

HandlerT = TypeVar("HandlerT", bound=Handler)
_BODY = "body_model"


class Route(NamedTuple):
    """One entry of a module's `ROUTES`.

    Attributes:
        path: Without a slash at its end; requests may have one.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    access: Access


def all_routes() -> Iterator[Route]:
    """The routes of every module in this folder."""
    for module in pkgutil.iter_modules(__path__):
        routes: list[Route] = importlib.import_module(f"{__name__}.{module.name}").ROUTES
        yield from routes


def routes_by_path() -> dict[str, list[Route]]:
    """The same, together where one path has several methods."""
    found: dict[str, list[Route]] = {}
    for route in all_routes():
        found.setdefault(route.path, []).append(route)
    return found


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
