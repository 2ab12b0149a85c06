"""Errors as fields of an output, in which they cross to the server, and back.

One request's error is the last output of that request, whoever found it: the check at the border,
the compiler of grammars, or a step.
"""

from __future__ import annotations

from typing import Any

from rtpjax.engine.request import ErrorKind, RequestOutput
from rtpjax.errors import (
    DrainingError,
    EngineError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    RtpjaxError,
)

_KINDS: dict[type[RequestError], ErrorKind] = {
    RequestTimeoutError: "timeout",
    QueueFullError: "queue_full",
    DrainingError: "draining",
    RequestError: "request",
}
_ERRORS = {kind: error for error, kind in _KINDS.items()}


def fields_of(error: RtpjaxError) -> dict[str, Any]:
    """What an output says of an error, by field of RequestOutput."""
    fields: dict[str, Any] = {"error": str(error)}
    if isinstance(error, RequestError):
        kind = next(kind for of, kind in _KINDS.items() if isinstance(error, of))
        fields |= {"error_kind": kind, "error_param": error.param, "error_code": error.code}
    return fields


def failed(request_id: str, error: RtpjaxError) -> RequestOutput:
    """The only output of a request that never ran."""
    return RequestOutput(request_id, "", (), finish_reason="error", **fields_of(error))


def error_of(output: RequestOutput) -> RtpjaxError:
    """The error that an output with finish_reason "error" tells of."""
    message = output.error or "the engine failed on this request"
    kind = _ERRORS.get(output.error_kind)
    if kind is None:
        return EngineError(message)
    return kind(message, param=output.error_param, code=output.error_code)
