"""Optional API keys."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from sanic import Request, Sanic
from sanic.exceptions import Unauthorized

# Probes, Prometheus and browsers send no key, and learn nothing about what callers ask.
_OPEN_PATHS = frozenset({"/health", "/liveness", "/status", "/metrics", "/docs", "/openapi.json"})


def install_auth(app: Sanic, api_keys: Sequence[str]) -> None:
    """Asks for one of `api_keys` on every route but the probes; without keys anyone may call."""
    if not api_keys:
        return
    keys = [key.encode() for key in api_keys]

    @app.on_request
    async def check(request: Request) -> None:
        if request.path.rstrip("/") in _OPEN_PATHS:
            return
        # Anthropic's clients send the key in a header of its own.
        key = request.token or request.headers.get("x-api-key", "")
        given = key.encode("utf-8", errors="surrogateescape")
        # All keys are compared, each in constant time: the time tells nothing about them.
        matches = [hmac.compare_digest(given, key) for key in keys]
        if not any(matches):
            raise Unauthorized("the API key is missing or wrong: send Authorization: Bearer KEY")
