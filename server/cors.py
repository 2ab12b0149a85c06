"""What pages of other origins may do with this server (CORS), by an allow-list.

Small enough to be our own: the extension of Sanic that has it keeps routes in a global, which two
apps in a process would share (docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from sanic import Request

from server.request_id import ANTHROPIC_HEADER, HEADER

ANY = "*"
_PREFLIGHT_S = 3600
_EXPOSED = f"{HEADER}, {ANTHROPIC_HEADER}, Retry-After, Allow"


class Cors:
    """Knows which origins are allowed.

    Args:
        origins: `https://host[:port]`, or "*" for all; none allows only the server's own pages.
    """

    def __init__(self, origins: Sequence[str]):
        self._origins = frozenset(origin.lower() for origin in origins)

    def is_foreign(self, request: Request) -> bool:
        """Whether a page sent it that is neither allowed nor from this server."""
        origin = request.headers.get("origin", "").lower()
        if not origin or self._allowed(origin):
            return False
        return origin.partition("://")[2] != request.headers.get("host", "").lower()

    def headers(self, request: Request) -> dict[str, str]:
        """What the response to a request says about it; nothing without a list."""
        if not self._origins:
            return {}
        # A cache must not give one origin's answer to another.
        always = {} if ANY in self._origins else {"Vary": "Origin"}
        origin = request.headers.get("origin", "")
        if not origin or not self._allowed(origin.lower()):
            return always
        found = always | {
            "Access-Control-Allow-Origin": ANY if ANY in self._origins else origin,
            "Access-Control-Expose-Headers": _EXPOSED,
        }
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            found |= _permissions(request)
        return found

    def _allowed(self, origin: str) -> bool:
        return ANY in self._origins or origin in self._origins


def _permissions(request: Request) -> dict[str, str]:
    """The answer to a preflight: what the page may send after it."""
    asked = request.headers.get("access-control-request-headers", "")
    return {
        "Access-Control-Allow-Methods": "GET, HEAD, POST, OPTIONS",
        # Clients have headers of their own (x-stainless-os, anthropic-version, ...): none is unsafe
        # to take from an origin that may send anything in its body.
        "Access-Control-Allow-Headers": asked or "authorization, content-type, x-api-key",
        "Access-Control-Max-Age": str(_PREFLIGHT_S),
    }
