"""What callers talk to: takes a request, and has a replica answer it.

An answer is passed on once its first piece has come. A replica that dies before that has told the
caller nothing, so another one is asked. One that dies later ends the stream with an error event, as
the server does for any error after a stream has begun.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from server.errors import HttpError
from server.messages_answer import error_json, messages_failure
from server.raw_answer import raw_failure
from server.replicas.messages import Head, HttpRequest, end_to_end
from server.replicas.prefix import prefix_blocks
from server.request_id import HEADER, valid_or_new
from server.sse import named_event, openai_failure

logger = logging.getLogger(__name__)

_MAX_TRIES = 5
_LOST = (RayActorError, RayServeException)


class Front:
    """Passes requests on to replicas.

    Args:
        replicas: The deployment of `Replica`.
        max_body_bytes: A larger body gets a 413.
    """

    def __init__(self, replicas: DeploymentHandle, max_body_bytes: int):
        self._replicas = replicas.options(stream=True, method_name="handle")
        self._max_body_bytes = max_body_bytes

    async def __call__(self, request: Request) -> Response:
        """Answers one request; Ray Serve calls it."""
        request_id = valid_or_new(request.headers.get(HEADER))
        asked = _Asked(request.url.path.rstrip("/") or "/", request_id)
        if asked.path == "/metrics":
            reason = "each replica has metrics of its own; scrape Ray's metrics ports"
            return _error(404, reason, asked)
        body = await self._body(request)
        if body is None:
            return _error(413, f"the body is larger than {self._max_body_bytes} bytes", asked)
        query = f"?{request.url.query}" if request.url.query else ""
        forwarded = HttpRequest(
            method=request.method,
            path=request.url.path + query,
            headers=_forwarded(request, request_id),
            body=body,
            blocks=prefix_blocks(body, request.headers.get("content-encoding", "").strip().lower()),
        )
        for tries in range(1, _MAX_TRIES + 1):
            answer = self._replicas.remote(forwarded)
            assert isinstance(answer, DeploymentResponseGenerator)
            try:
                return await _begun(answer, asked)
            except _LOST as error:
                line = "a replica was lost before it answered request %s (try %d): %s"
                logger.warning(line, request_id, tries, error)
        reason = "replicas were lost while they worked on this request; try again later"
        return _error(503, reason, asked)

    async def _body(self, request: Request) -> bytes | None:
        """The whole body, None if it is too large."""
        pieces, size = [], 0
        async for piece in request.stream():
            size += len(piece)
            if size > self._max_body_bytes:
                return None
            pieces.append(piece)
        return b"".join(pieces)


def _forwarded(request: Request, request_id: str) -> tuple[tuple[str, str], ...]:
    """The headers for a replica, which sees this host as the other end of its connection."""
    headers = [(n, v) for n, v in request.headers.items() if n.lower() != HEADER.lower()]
    headers.append((HEADER, request_id))
    client = request.client.host if request.client is not None else "unknown"
    if client not in ("127.0.0.1", "::1"):  # who is not from here is not taken for an operator
        headers.append(("x-forwarded-for", client))
    return end_to_end(headers)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Which request an answer is for."""

    path: str
    request_id: str


async def _begun(answer: DeploymentResponseGenerator, asked: _Asked) -> Response:
    """The response, once a stream has its first event, or an answer is whole."""
    try:
        head = await anext(answer)
        assert isinstance(head, Head)
        first = await anext(answer, b"")
        if head.is_stream:
            rest = _rest(answer, first, asked)
            return StreamingResponse(rest, head.status, dict(head.headers))
        body = first + b"".join([piece async for piece in answer])
        return Response(body, head.status, dict(head.headers))
    except BaseException:
        answer.cancel()  # the caller left, or the replica is gone
        raise


async def _rest(
    answer: DeploymentResponseGenerator, first: bytes, asked: _Asked
) -> AsyncIterator[bytes]:
    is_whole = False
    try:
        yield first
        async for piece in answer:
            yield piece
        is_whole = True
    except _LOST as error:
        line = "a replica was lost in the middle of the stream of request %s: %s"
        logger.warning(line, asked.request_id, error)
        is_whole = True
        message = (
            f"the replica that wrote this answer was lost, as the log says of {asked.request_id}"
        )
        error = HttpError(500, message, code="replica_lost", request_id=asked.request_id)
        yield _failure(asked.path, error)
    finally:
        if not is_whole:
            answer.cancel()


def _error(status: int, message: str, asked: _Asked) -> Response:
    error = HttpError(status, message, request_id=asked.request_id)
    body = error_json(error) if asked.path.startswith("/v1/messages") else error.as_json()
    headers = {HEADER: asked.request_id}
    return Response(json.dumps(body), status, headers, media_type="application/json")


def _failure(path: str, error: HttpError) -> bytes:
    """The last event of a stream that cannot go on, as the API of a path writes it."""
    if path.startswith("/v1/messages"):
        return messages_failure(error)
    if path.endswith("/responses"):
        code, message = error.code, error.message
        fields = {"code": code, "message": message, "param": None, "sequence_number": 0}
        return named_event({"type": "error", **fields})
    return raw_failure(error) if path in ("/", "/batch_infer") else openai_failure(error)
