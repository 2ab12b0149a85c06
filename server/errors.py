"""Any exception -> an OpenAI-shaped JSON error with the right status."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import NotFound, SanicException, ServiceUnavailable

from rtpjax.errors import (
    DrainingError,
    EngineError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
)
from server.request_id import request_id_of

logger = logging.getLogger(__name__)

STOPPED = "the engine has stopped; the server's log says why"
_RETRY_AFTER = {"Retry-After": "1"}
_CODES = {
    401: "invalid_api_key",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
    431: "request_head_too_large",
}


class ModelNotFound(NotFound):
    """GET /v1/models/{id} for another model than the one served."""


class Overloaded(ServiceUnavailable):
    """The server holds as much as it may; trying again later can work."""


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error as a caller sees it.

    Attributes:
        request_id: Of the request that failed; Anthropic's errors have it.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    details: Mapping[str, object] | None = None
    request_id: str | None = None

    def as_json(self) -> dict[str, object]:
        """The body: OpenAI's `error` object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self, body: dict[str, object] | None = None) -> HTTPResponse:
        """The response, with another body than OpenAI's if one is given."""
        return HTTPResponse(
            json.dumps(body or self.as_json(), ensure_ascii=False),
            status=self.status,
            headers=self.headers,
            content_type="application/json",
        )


ErrorShape = Callable[[HttpError], dict[str, object]]


def to_http_error(error: Exception, request: Request) -> HttpError:
    """Maps an exception that ended a request.

    What is not meant for the caller is logged. The caller is told the request's id, which stands
    in the log, too, and nothing of the inside.
    """
    request_id = request_id_of(request)
    found = replace(_to_http_error(error, request_id), request_id=request_id)
    code = found.code or ("server_error" if found.status >= 500 else "invalid_request")
    request.app.ctx.server.metrics.refused.labels(found.status, code).inc()
    return found


def _to_http_error(error: Exception, request_id: str) -> HttpError:
    if isinstance(error, QueueFullError):
        code = error.code or "rate_limit_exceeded"
        return HttpError(429, str(error), error.param, code, _RETRY_AFTER)
    if isinstance(error, DrainingError):
        message = STOPPED if error.code == "stopped" else str(error)  # that one says why
        return HttpError(503, message, error.param, error.code or "unavailable", _RETRY_AFTER)
    if isinstance(error, RequestTimeoutError):
        # Clients repeat what ended with 5xx unless they are told not to.
        return HttpError(504, str(error), error.param, error.code, {"x-should-retry": "false"})
    if isinstance(error, RequestError):
        return HttpError(400, str(error), error.param, error.code, details=error.details)
    if isinstance(error, ModelNotFound):
        return HttpError(404, str(error), "model", "model_not_found")
    if isinstance(error, ServiceUnavailable):
        code = "overloaded" if isinstance(error, Overloaded) else "unavailable"
        return HttpError(503, str(error), None, code, _RETRY_AFTER)
    if isinstance(error, SanicException) and error.status_code < 500:
        return _sanics_own(error)
    code = None
    if isinstance(error, EngineError):
        code = "engine_error"
        logger.error("the engine failed on request %s: %s", request_id, error)
    else:
        logger.error("request %s failed", request_id, exc_info=error)
    message = "the server failed while it worked on this request; its log says why, under"
    return HttpError(500, f"{message} {request_id}", None, code)


def _sanics_own(error: SanicException) -> HttpError:
    status = error.status_code
    headers = {name: str(value) for name, value in error.headers.items()}
    return HttpError(status, str(error), None, _CODES.get(status), headers)


def install_error_handler(app: Sanic, shapes: Mapping[str, ErrorShape]) -> None:
    """Sends every exception of `app`, Sanic's own ones too, through `to_http_error`.

    Args:
        app: The app.
        shapes: By the beginning of a path, how errors look there if not as OpenAI's.
    """

    @app.exception(Exception)
    async def handle(request: Request, error: Exception) -> HTTPResponse:
        found = to_http_error(error, request)
        shape = next((s for path, s in shapes.items() if request.path.startswith(path)), None)
        return found.response(shape(found) if shape is not None else None)
