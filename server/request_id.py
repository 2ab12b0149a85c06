"""The id of an HTTP request: the caller's X-Request-ID, or one made here.

It is in the headers of every response, in the text of errors that say no more, and in the log: at
the end of the request's line, and in front of what is logged while the request is worked on.
"""

from __future__ import annotations

import logging
import re
import secrets
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sanic import Request

HEADER = "X-Request-ID"
# What Anthropic's clients read.
ANTHROPIC_HEADER = "request-id"

_VALID = re.compile(r"[\x20-\x7e]{1,128}")
_current: ContextVar[str] = ContextVar("request_id", default="")


def valid_or_new(given: str | None) -> str:
    """The caller's id, if it is 1 to 128 characters of printable ASCII; else a new one."""
    given = (given or "").strip()
    return given if _VALID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def request_id_of(request: Request) -> str:
    """The id of this request; the first call reads or makes it."""
    found = getattr(request.ctx, "request_id", None)
    if found is None:
        # A request whose head could not be read has none of its headers.
        found = request.ctx.request_id = valid_or_new(request.headers.get(HEADER))
        _current.set(found)
    return found


class RequestIdFilter(logging.Filter):
    """Gives every record `request`: the id of the request that is worked on, in brackets."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true."""
        request_id = _current.get()
        record.request = f" [{request_id}]" if request_id else ""
        return True
