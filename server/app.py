"""The Sanic app: settings, error handler, keys, access log, and the routes of the folder."""

from __future__ import annotations

import itertools

from sanic import Sanic

from server.access_log import install_access_log, log_disconnects
from server.auth import install_auth
from server.config import ServerConfig
from server.context import ServerContext
from server.engine_protocol import Engine
from server.errors import install_error_handler
from server.messages_answer import error_json
from server.routes import all_routes

# Sanic wants a name per app; tests make several in one process.
_numbers = itertools.count()


def create_app(engine: Engine, config: ServerConfig) -> Sanic:
    """The HTTP side of `engine`; it can listen before the engine is ready.

    Raises:
        ConfigError: The tokenizer's chat template is no valid Jinja.
    """
    app = Sanic(f"rtpjax-{next(_numbers)}", configure_logging=False)
    app.config.update(
        ACCESS_LOG=False,  # ours says tokens and disconnects
        AUTO_EXTEND=False,
        FALLBACK_ERROR_FORMAT="json",
        KEEP_ALIVE_TIMEOUT=120,
        MOTD=False,
        REQUEST_MAX_SIZE=config.max_body_bytes,
        RESPONSE_TIMEOUT=config.response_timeout_s,  # counts a running handler, too
        TOUCHUP=False,  # it rewrites Sanic's classes, which a second app in the process cannot bear
    )
    app.ctx.server = context = ServerContext(engine, config)
    app.register_listener(lambda _: context.preparation.close(), "after_server_stop")
    install_error_handler(app, {"/v1/messages": error_json})
    install_auth(app, config.api_keys)
    install_access_log(app)
    for number, (method, path, handler) in enumerate(all_routes()):
        name = f"{handler.__name__}-{number}"
        app.add_route(log_disconnects(handler), path, methods=[method], name=name)
    return app
