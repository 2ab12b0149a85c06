"""The Sanic app: settings, error handler, keys, access log, and the routes of the folder."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import MethodNotAllowed, SanicException
from sanic.router import Router

from server.access_log import install_access_log, log_disconnects
from server.admission import check_head
from server.auth import Gate
from server.config import ServerConfig
from server.context import ServerContext
from server.cors import Cors
from server.engine_protocol import Engine
from server.errors import install_error_handler
from server.messages_answer import error_json
from server.request_id import ANTHROPIC_HEADER, HEADER, request_id_of
from server.routes import routes_by_path

# Sanic wants a name per app; tests make several in one process.
_numbers = itertools.count()


_ANTHROPIC = "/v1/messages"
# A connection is closed when its client has read everything, however slowly; Limits cuts it off
# when it reads nothing.
_CLOSE_TIMEOUT_S = 24 * 3600


class _Router(Router):
    """Paths with and without slashes at their ends are the same; a 405 names the methods."""

    def get(self, path: str, method: str, host: str | None):  # pyright: ignore (it is cached)
        path = path.rstrip("/") or "/"
        try:
            return super().get(path, method, None)
        except MethodNotAllowed as error:
            # Sanic does not know them for a path with a variable.
            options, *_ = super().get(path, "OPTIONS", None)
            raise MethodNotAllowed(str(error), method, options.ctx.methods) from None


def create_app(engine: Engine, config: ServerConfig) -> Sanic:
    """The HTTP side of `engine`; it can listen before the engine is ready.

    Raises:
        ConfigError: The tokenizer's chat template is no valid Jinja.
    """
    app = Sanic(f"rtpjax-{next(_numbers)}", configure_logging=False, router=_Router())
    app.config.update(
        ACCESS_LOG=False,  # ours says tokens and disconnects
        AUTO_EXTEND=False,
        FALLBACK_ERROR_FORMAT="json",
        GRACEFUL_TCP_CLOSE_TIMEOUT=_CLOSE_TIMEOUT_S,
        KEEP_ALIVE_TIMEOUT=120,
        MOTD=False,
        REQUEST_MAX_SIZE=config.max_body_bytes,
        RESPONSE_TIMEOUT=config.response_timeout_s,  # counts a running handler, too
        TOUCHUP=False,  # it rewrites Sanic's classes, which a second app in the process cannot bear
    )
    app.ctx.server = context = ServerContext(engine, config)
    app.register_listener(lambda _: context.preparation.close(), "after_server_stop")
    _watch_loop(app, context)
    cors = Cors(config.cors_allow_origins)
    app.ctx.common_headers = lambda request: _id_headers(request) | cors.headers(request)
    install_error_handler(app, {_ANTHROPIC: error_json})
    install_access_log(app)
    _install_admission(app, config, cors)
    _add_routes(app)
    return app


def _watch_loop(app: Sanic, context: ServerContext) -> None:
    """Measures the event loop's lag as long as the app serves."""
    tasks: list[asyncio.Task[None]] = []

    def begin(_: Sanic) -> None:
        tasks.append(asyncio.create_task(context.metrics.watch_loop()))

    def end(_: Sanic) -> None:
        tasks.pop().cancel()

    app.register_listener(begin, "after_server_start")
    app.register_listener(end, "before_server_stop")


def _id_headers(request: Request) -> dict[str, str]:
    request_id = request_id_of(request)
    if request.path.startswith(_ANTHROPIC):
        return {HEADER: request_id, ANTHROPIC_HEADER: request_id}
    return {HEADER: request_id}


def _install_admission(app: Sanic, config: ServerConfig, cors: Cors) -> None:
    """Refuses what can be refused by a request's head; all of it runs before a body is read."""
    gate = Gate(config)

    @app.signal("http.lifecycle.request")
    async def identify(request: Request) -> None:
        request_id_of(request)

    @app.signal("http.routing.before")
    async def admit(request: Request) -> None:
        try:
            route, *_ = app.router.get(request.path, request.method, None)
            access = route.ctx.access
        except SanicException:  # without a key nobody learns which routes there are
            access = "caller"
        request.ctx.caller = gate.admit(request, access)

    @app.signal("http.routing.after")
    async def check(request: Request, **_: Any) -> None:
        check_head(request, config, cors)


def _add_routes(app: Sanic) -> None:
    """Adds the routes of the folder; each GET has its HEAD, and each path its OPTIONS."""
    names = itertools.count()
    for path, routes in routes_by_path().items():
        methods = {"OPTIONS"}
        for route in routes:
            own = {"GET", "HEAD"} if route.method == "GET" else {route.method}
            methods |= own
            app.add_route(
                log_disconnects(route.handler),
                path,
                methods=own,
                name=f"{route.handler.__name__}-{next(names)}",
                ctx_access=route.access,
            )
        app.add_route(
            _options,
            path,
            methods={"OPTIONS"},
            name=f"options-{next(names)}",
            ctx_access="open",
            ctx_methods=tuple(sorted(methods)),
        )


async def _options(request: Request, **_: str) -> HTTPResponse:
    assert request.route is not None
    return HTTPResponse(status=204, headers={"Allow": ", ".join(request.route.ctx.methods)})
