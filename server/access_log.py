"""One line per request: method, path, status, milliseconds, tokens, and all of its ids."""

from __future__ import annotations

import logging
import time
from asyncio import CancelledError
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any

from sanic import HTTPResponse, Request, Sanic

from rtpjax.engine.request import GenerationRequest
from server.output import Usage
from server.request_id import request_id_of

logger = logging.getLogger(__name__)

Handler = Callable[..., Coroutine[Any, Any, HTTPResponse | None]]

# What nginx logs for a client that closed the connection before its answer was complete.
CLIENT_LEFT = 499

_MAX_IDS = 8  # of one line


def note_answer(
    request: Request, answer_id: str, requests: Sequence[GenerationRequest], usage: Usage
) -> None:
    """Adds an answer to the line of this request, before it is generated.

    Args:
        request: The HTTP request.
        answer_id: As the caller gets it; "" if the API has none.
        requests: The engine's, whose ids stand in the engine's log lines.
        usage: Counts the tokens so far.
    """
    answers = getattr(request.ctx, "answers", [])
    request.ctx.answers = [*answers, (answer_id, [r.request_id for r in requests], usage)]


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
    _count(request, status)
    answers = _answers(request)
    line = "%s %s %d %.1fms%s id=%s"
    path, request_id = request.path, request_id_of(request)
    logger.info(line, request.method, path, status, elapsed_ms, answers, request_id)


def _count(request: Request, status: int) -> None:
    route = request.route
    # Paths are the callers' to choose, and would be as many series.
    path = "other" if route is None else f"/{route.path}"
    method = request.method if route is not None else "other"
    request.app.ctx.server.metrics.http_requests.labels(method, path, status).inc()


def _answers(request: Request) -> str:
    answers = getattr(request.ctx, "answers", None)
    if not answers:
        return ""
    num_prompt = sum(usage.prompt_tokens for *_, usage in answers)
    num_output = sum(usage.completion_tokens for *_, usage in answers)
    ids = _listed([answer_id for answer_id, *_ in answers if answer_id])
    engine_ids = _listed([each for _, engine_ids, _ in answers for each in engine_ids])
    answer = f" answer={ids}" if ids else ""
    return f" prompt={num_prompt} output={num_output}{answer} engine={engine_ids}"


def _listed(ids: Sequence[str]) -> str:
    more = f"+{len(ids) - _MAX_IDS}" if len(ids) > _MAX_IDS else ""
    return ",".join(ids[:_MAX_IDS]) + more
