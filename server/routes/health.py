"""What load balancers and Prometheus ask for."""

from __future__ import annotations

from importlib.metadata import version

from sanic import HTTPResponse, Request
from sanic.response import json, raw

from server.routes import Route, context_of


async def health(request: Request) -> HTTPResponse:
    """200 only while requests are taken; else 503 and the reason."""
    reason = context_of(request).unavailable_reason()
    if reason is not None:
        return json({"status": "unavailable", "reason": reason}, status=503)
    return json({"status": "ok"})


async def liveness(_request: Request) -> HTTPResponse:
    """200 as long as the process answers, also while the model is loading."""
    return json("ok")


async def served_version(_request: Request) -> HTTPResponse:
    """The version of the server."""
    return json({"version": version("rtpjax")})


async def load(request: Request) -> HTTPResponse:
    """How many requests the engine has, running and waiting; as vLLM's route of this name."""
    stats = context_of(request).engine.stats()
    return json({"server_load": stats.num_running + stats.num_waiting})


async def metrics(request: Request) -> HTTPResponse:
    """Prometheus' text format."""
    body = context_of(request).metrics.render()
    return raw(body, content_type="text/plain; version=0.0.4; charset=utf-8")


ROUTES = [
    Route("GET", "/health", health, "open"),
    Route("GET", "/ready", health, "open"),
    Route("GET", "/ping", health, "open"),
    Route("POST", "/ping", health, "open"),
    Route("GET", "/version", served_version, "open"),
    Route("GET", "/load", load, "operator"),
    Route("GET", "/status", liveness, "open"),
    Route("GET", "/liveness", liveness, "open"),
    Route("GET", "/metrics", metrics, "operator"),
]
