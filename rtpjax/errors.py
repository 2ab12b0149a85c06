"""Every error that rtpjax raises on purpose.

RtpjaxError
 +-- ConfigError            the operator's setting cannot be used (start-up ends)
 +-- CheckpointError        a checkpoint is unreadable or does not fit its model (likewise)
 +-- RequestError           the caller's request cannot be honoured: HTTP 400
 |    +-- QueueFullError    too many requests are waiting: HTTP 429
 |    +-- DrainingError     the server is shutting down or not ready yet: HTTP 503
 |    +-- RequestTimeoutError  the request's own time limit was over: HTTP 504
 +-- EngineError            the engine failed while it worked on a request: HTTP 500

A message names the thing, what was expected, what was found, and what to do next.
"""

from collections.abc import Mapping
from typing import Any


class RtpjaxError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(RtpjaxError):
    """A flag or environment variable cannot be used as given."""


class CheckpointError(RtpjaxError):
    """A checkpoint cannot be read, or does not fit the model that its config names."""


class RequestError(RtpjaxError):
    """A request that cannot be honoured.

    Attributes:
        param: The request field at fault, as the API spells it, or None.
        code: A short machine-readable reason (`context_length_exceeded`, ...), or None.
        details: What clients that act on the error by themselves look for, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.param = param
        self.code = code
        self.details = details


class QueueFullError(RequestError):
    """The waiting queue is at its limit; trying again later can work."""


class DrainingError(RequestError):
    """The engine takes no new requests: it is shutting down or still starting."""


class RequestTimeoutError(RequestError):
    """The request took longer than it said it may; trying again would do the work again."""


class EngineError(RtpjaxError):
    """The engine failed; the request ended without a complete answer."""
