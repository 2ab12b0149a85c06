"""What RTP-LLM's schedulers and operators ask of a worker."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from sanic import HTTPResponse, Request
from sanic.response import json

from server.context import ModelContext, ServerContext
from server.protocol.body import StrictModel, parse_body
from server.routes import Route, context_of, takes

logger = logging.getLogger(__name__)


class LogLevelRequest(StrictModel):
    """Body of POST /set_log_level."""

    log_level: Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR"]


async def worker_status(request: Request) -> HTTPResponse:
    """Load and memory in one answer."""
    context = context_of(request)
    stats = context.engine.stats()
    return json(
        {
            "role": "PDFUSION",  # prompts and answers are computed by the same worker
            "alive": context.unavailable_reason() is None,
            "model_name": context.model_names[0],
            "max_seq_len": context.engine.max_model_len if context.engine.is_ready else 0,
            "running_query_len": stats.num_running,
            "waiting_query_len": stats.num_waiting,
            "cache_status": _cache(request),
        }
    )


async def cache_status(request: Request) -> HTTPResponse:
    """Tokens that the paged cache holds and could still take."""
    return json(_cache(request))


@takes(LogLevelRequest)
def set_log_level(body: bytes, context: ModelContext) -> LogLevel:
    """Changes what the process logs from now on."""
    return LogLevel(parse_body(body, LogLevelRequest, context.fields).log_level)


@dataclass(frozen=True, slots=True)
class LogLevel:
    """A level to set."""

    name: str

    async def respond(self, request: Request, context: ServerContext) -> HTTPResponse:
        """Sets it."""
        logging.getLogger().setLevel("DEBUG" if self.name == "TRACE" else self.name)
        logger.warning("the log level is %s now", self.name)
        return json({"status": "ok"})


def _cache(request: Request) -> dict[str, int]:
    stats = context_of(request).engine.stats()
    return {
        "available_kv_cache": stats.num_free_pages * stats.page_size,
        "total_kv_cache": stats.num_pages * stats.page_size,
        "block_size": stats.page_size,
    }


ROUTES = [
    Route("GET", "/worker_status", worker_status, "operator"),
    Route("POST", "/worker_status", worker_status, "operator"),
    Route("GET", "/cache_status", cache_status, "operator"),
    Route("POST", "/cache_status", cache_status, "operator"),
    Route("POST", "/set_log_level", set_log_level, "operator"),
]
