"""One file per group of routes. A module with a `ROUTES` list is served by being in this folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from sanic import Request

from server.access_log import Handler
from server.context import ServerContext

# Method, path, handler.
Route = tuple[str, str, Handler]


def all_routes() -> Iterator[Route]:
    """The routes of every module in this folder."""
    for module in pkgutil.iter_modules(__path__):
        yield from importlib.import_module(f"{__name__}.{module.name}").ROUTES


def context_of(request: Request) -> ServerContext:
    """What `create_app` left on the app for its routes."""
    return request.app.ctx.server
