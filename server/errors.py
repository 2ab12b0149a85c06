"""Any exception -> an OpenAI-shaped JSON error with the right status."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import NotFound, SanicException

from rtpjax.errors import (
    DrainingError,
    EngineError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
)

logger = logging.getLogger(__name__)

_RETRY_AFTER = {"Retry-After": "1"}
_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
}


class ModelNotFound(NotFound):
    """GET /v1/models/{id} for another model than the one served."""


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error as a caller sees it."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    details: Mapping[str, object] | None = None

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


def to_http_error(error: Exception) -> HttpError:
    """Maps an exception; what nobody foresaw is logged, and the caller learns nothing internal."""
    if isinstance(error, QueueFullError):
        code = error.code or "rate_limit_exceeded"
        return HttpError(429, str(error), error.param, code, _RETRY_AFTER)
    if isinstance(error, DrainingError):
        return HttpError(503, str(error), error.param, error.code or "unavailable", _RETRY_AFTER)
    if isinstance(error, RequestTimeoutError):
        # Clients repeat what ended with 5xx unless they are told not to.
        return HttpError(504, str(error), error.param, error.code, {"x-should-retry": "false"})
    if isinstance(error, RequestError):
        return HttpError(400, str(error), error.param, error.code, details=error.details)
    if isinstance(error, ModelNotFound):
        return HttpError(404, str(error), "model", "model_not_found")
    if isinstance(error, SanicException) and error.status_code < 500:
        status = error.status_code
        headers = {name: str(value) for name, value in error.headers.items()}
        return HttpError(status, str(error), None, _CODES.get(status), headers)
    if isinstance(error, EngineError):
        logger.error("the engine failed on a request: %s", error)
        return HttpError(500, str(error), None, "engine_error")
    logger.error("a request failed", exc_info=error)
    return HttpError(500, "the server failed while it worked on this request; its log says why")


def install_error_handler(app: Sanic, shapes: Mapping[str, ErrorShape]) -> None:
    """Sends every exception of `app`, Sanic's own ones too, through `to_http_error`.

    Args:
        app: The app.
        shapes: By the beginning of a path, how errors look there if not as OpenAI's.
    """

    @app.exception(Exception)
    async def handle(request: Request, error: Exception) -> HTTPResponse:
        found = to_http_error(error)
        shape = next((s for path, s in shapes.items() if request.path.startswith(path)), None)
        return found.response(shape(found) if shape is not None else None)
