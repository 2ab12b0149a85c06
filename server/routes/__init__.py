"""One file per group of routes. A module with a `ROUTES` list is served by being in this folder.

A route that reads a body is a plain function of the body's bytes, marked with `takes`. It runs in
`server.preparation`, and what it returns answers the request on the event loop. So no route can
parse on the loop.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel
from pydantic_core import to_json
from sanic import HTTPResponse, Request

from server.access_log import Handler
from server.admission import encoding_of
from server.auth import Access
from server.connection import HttpRequests
from server.context import ModelContext, ServerContext
from server.generation import watch_for_disconnect

_BODY = "body_model"
# What is written at once: more would be copied, and sent, while all others wait.
_PIECE_BYTES = 256 * 1024


class Route(NamedTuple):
    """One entry of a module's `ROUTES`.

    Attributes:
        path: Without a slash at its end; requests may have one.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    access: Access


class Prepared(Protocol):
    """What a body asks for, ready to be answered."""

    async def respond(self, request: Request, context: ServerContext) -> HTTPResponse | None:
        """Answers the request; None if the response has been sent."""
        ...


# A route: what a body asks for. It may raise RequestError.
Prepare = Callable[[bytes, ModelContext], Prepared]


class Reply:
    """An answer that needs no engine; its JSON is made while preparing, as it can be long.

    Attributes:
        content: The JSON.
    """

    def __init__(self, value: Any):
        self.content = to_json(value)

    async def respond(self, request: Request, context: ServerContext) -> HTTPResponse | None:
        """Sends the answer; a long one in pieces, which a client takes one after the other."""
        size = len(self.content)
        if size <= _PIECE_BYTES:
            return HTTPResponse(self.content, content_type="application/json")
        headers = {"Content-Length": str(size)}
        response = await request.respond(headers=headers, content_type="application/json")
        assert isinstance(response, HTTPResponse)
        for at in range(0, size, _PIECE_BYTES):
            await response.send(self.content[at : at + _PIECE_BYTES])
        await response.eof()
        return None


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


def takes(model: type[BaseModel], *, generates: bool = False) -> Callable[[Prepare], Handler]:
    """Makes a handler of a function that prepares the answer to a body.

    Args:
        model: The body, for the OpenAPI document.
        generates: Whether the answer needs the engine, which may be loading or draining.
    """

    def handler_of(prepare: Prepare) -> Handler:
        @wraps(prepare)
        async def handler(request: Request) -> HTTPResponse | None:
            context = context_of(request)
            if generates:
                context.check_available()
            watch_for_disconnect(request)
            body = await _body_of(request, context)
            prepared = await context.preparation.run(prepare, body)
            del body
            request.body = b""
            if isinstance(request.stream, HttpRequests):
                request.stream.release_body()
            return await prepared.respond(request, context)

        setattr(handler, _BODY, model)
        return handler

    return handler_of


async def _body_of(request: Request, context: ServerContext) -> bytes:
    """The body of a request as it was before it was compressed."""
    if not (encoding_of(request) and request.body):
        return request.body
    body = await context.preparation.inflate(request.body)
    if isinstance(request.stream, HttpRequests):
        request.stream.hold(len(body))
    return body


def body_of(handler: Handler) -> type[BaseModel] | None:
    """The model that `takes` put on a handler."""
    return getattr(handler, _BODY, None)


def context_of(request: Request) -> ServerContext:
    """What `create_app` left on the app for its routes."""
    return request.app.ctx.server
