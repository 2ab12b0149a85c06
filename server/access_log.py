"""One line per request: method, path, status, milliseconds and tokens."""

from __future__ import annotations

import logging
import time
from asyncio import CancelledError
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from sanic import HTTPResponse, Request, Sanic

from server.output import Usage

logger = logging.getLogger(__name__)

Handler = Callable[..., Coroutine[Any, Any, HTTPResponse | None]]

# What nginx logs for a client that closed the connection before its answer was complete.
CLIENT_LEFT = 499


def note_usage(request: Request, *usages: Usage) -> None:
    """Adds token counts to the line of this request."""
    num_prompt = sum(usage.prompt_tokens for usage in usages)
    num_output = sum(usage.completion_tokens for usage in usages)
    request.ctx.tokens = f" prompt={num_prompt} output={num_output}"


def log_disconnects(handler: Handler) -> Handler:
    """Wraps a handler: a client that leaves cancels it, and then Sanic sends no response to log."""

    @wraps(handler)
    async def logged(request: Request, **kwargs: Any) -> HTTPResponse | None:
        try:
            return await handler(request, **kwargs)
        except CancelledError:
            _log(request, CLIENT_LEFT)
            raise

    return logged


def install_access_log(app: Sanic) -> None:
    """Logs each request when its response is complete."""

    @app.signal("http.lifecycle.request")
    async def begin(request: Request) -> None:
        request.ctx.start_s = time.monotonic()

    @app.signal("http.lifecycle.response")
    async def end(request: Request, response: HTTPResponse) -> None:
        _log(request, response.status)


def _log(request: Request, status: int) -> None:
    if getattr(request.ctx, "is_logged", False):
        return
    request.ctx.is_logged = True
    start_s = getattr(request.ctx, "start_s", None)
    elapsed_ms = 0.0 if start_s is None else (time.monotonic() - start_s) * 1000
    tokens = getattr(request.ctx, "tokens", "")
    logger.info("%s %s %d %.1fms%s", request.method, request.path, status, elapsed_ms, tokens)
