"""The OpenAPI document, for tools and for readers."""

from __future__ import annotations

from sanic import HTTPResponse, Request
from sanic.response import html, json

from server.openapi import document, page
from server.routes import Route


async def openapi(_request: Request) -> HTTPResponse:
    """This API as an OpenAPI document."""
    return json(document())


async def docs(_request: Request) -> HTTPResponse:
    """This API as a page."""
    return html(page())


ROUTES = [Route("GET", "/openapi.json", openapi, "open"), Route("GET", "/docs", docs, "open")]
