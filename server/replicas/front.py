"""What callers talk to: takes a request, and has a replica answer it.

An answer is passed on once its first piece has come. A replica that dies before that has told the
caller nothing, so another one is asked. One that dies later ends the stream with an error event, as
the server does for any error after a stream has begun.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from server.errors import HttpError
from server.replicas.messages import Head, HttpRequest, end_to_end
from server.replicas.prefix import prefix_blocks

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
        if request.url.path == "/metrics":
            return _error(404, "each replica has metrics of its own; scrape Ray's metrics ports")
        body = await self._body(request)
        if body is None:
            return _error(413, f"the body is larger than {self._max_body_bytes} bytes")
        query = f"?{request.url.query}" if request.url.query else ""
        forwarded = HttpRequest(
            method=request.method,
            path=request.url.path + query,
            headers=end_to_end(request.headers.items()),
            body=body,
            blocks=prefix_blocks(body),
        )
        for tries in range(1, _MAX_TRIES + 1):
            answer = self._replicas.remote(forwarded)
            assert isinstance(answer, DeploymentResponseGenerator)
            try:
                return await _begun(answer)
            except _LOST as error:
                logger.warning("a replica was lost before it answered (try %d): %s", tries, error)
        return _error(503, "replicas were lost while they worked on this request; try again later")

    async def _body(self, request: Request) -> bytes | None:
        """The whole body, None if it is too large."""
        pieces, size = [], 0
        async for piece in request.stream():
            size += len(piece)
            if size > self._max_body_bytes:
                return None
            pieces.append(piece)
        return b"".join(pieces)


async def _begun(answer: DeploymentResponseGenerator) -> Response:
    """The response, once a stream has its first event, or an answer is whole."""
    try:
        head = await anext(answer)
        assert isinstance(head, Head)
        first = await anext(answer, b"")
        if head.is_stream:
            return StreamingResponse(_rest(answer, first), head.status, dict(head.headers))
        body = first + b"".join([piece async for piece in answer])
        return Response(body, head.status, dict(head.headers))
    except BaseException:
        answer.cancel()  # the caller left, or the replica is gone
        raise


async def _rest(answer: DeploymentResponseGenerator, first: bytes) -> AsyncIterator[bytes]:
    is_whole = False
    try:
        yield first
        async for piece in answer:
            yield piece
        is_whole = True
    except _LOST as error:
        logger.warning("a replica was lost in the middle of a stream: %s", error)
        is_whole = True
        lost = HttpError(500, "the replica that wrote this answer was lost", code="replica_lost")
        yield f"data: {json.dumps(lost.as_json())}\n\n".encode()
    finally:
        if not is_whole:
            answer.cancel()


def _error(status: int, message: str) -> Response:
    error = HttpError(status, message)
    return Response(json.dumps(error.as_json()), status, media_type="application/json")
