"""From an open port to a drained process, in one asyncio loop."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable

import uvloop
from sanic import Sanic
from sanic.server import AsyncioServer

from rtpjax.errors import ConfigError, EngineError
from server.app import create_app
from server.config import ServerConfig
from server.connection import Connection
from server.engine_protocol import Engine

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_FAREWELL_S = 3.0  # in which callers and /health hear that the engine has failed


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; take it before loading a model, so that a port in use is found at once.

    Raises:
        ConfigError: The address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"host {host!r}: {error}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What the system keeps for a client that does not read; connections inherit it. (Linux
        # doubles it.) Without it that can be megabytes for each.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
        sock.bind((host, port))
        # With SO_REUSEADDR two sockets can bind the same port until one of them listens.
        sock.listen(1024)
    except OSError as error:
        sock.close()
        message = f"cannot listen on {host}:{port}: {error.strerror}; set START_PORT to a free port"
        raise ConfigError(message) from error
    return sock


def check_port(host: str, port: int) -> None:
    """Raises: ConfigError: The port is in use, or not ours to use."""
    bind(host, port).close()


def run(
    engine: Engine,
    config: ServerConfig,
    *,
    sock: socket.socket | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Blocks until SIGTERM or SIGINT and the drain that follows. See `serve`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(engine, config, sock=sock, on_ready=on_ready))


async def serve(
    engine: Engine,
    config: ServerConfig,
    *,
    sock: socket.socket | None = None,
    on_ready: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Listens, starts the engine, serves, and drains.

    Args:
        sock: From `bind`; by default one is bound here.
        on_ready: Called with the base URL once requests are answered.
        stop: Ends the server when set; by default SIGTERM and SIGINT do.

    Raises:
        ConfigError: The port cannot be used, or the chat template is broken.
        EngineError: The engine has failed. Whoever started the process should start it again.
    """
    app = create_app(engine, config)
    _allow_open_files(config.max_connections)
    sock = sock or bind(config.host, config.port)
    if stop is None:
        stop = asyncio.Event()
        _stop_on_signals(stop, engine)
    server = await _listen(app, sock)
    app.ctx.server.preparation.begin()  # it imports while the engine loads
    starting = asyncio.create_task(engine.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting  # raises what went wrong while loading
            if on_ready is not None:
                on_ready(_url(config.host, sock.getsockname()[1]))
            await _stop_or_failure(stopping, engine)
            await _drain(engine, config)
    finally:
        starting.cancel()
        stopping.cancel()
        await _close(server)
        await engine.stop()


def _allow_open_files(num_connections: int) -> None:
    """Raises the process's limit of open files for its connections, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num_connections + 256  # weights, logs, sockets of other hosts
    wanted = needed
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < needed:
        logger.warning(
            "the limit of open files (ulimit -Hn) is %d, too few for MAX_CONNECTIONS=%d: raise it, "
            "or lower the setting",
            hard,
            num_connections,
        )


def _stop_on_signals(stop: asyncio.Event, engine: Engine) -> None:
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if not (engine.is_ready or engine.is_draining):
            # Loading: nothing to drain, and the thread that compiles cannot be interrupted.
            os._exit(128 + number)
        # A second Ctrl-C: the user does not want to wait for the drain. SIGTERM may come twice:
        # from the orchestrator, and from another host of the mesh.
        if stop.is_set() and number == signal.SIGINT:
            for task in asyncio.all_tasks(loop):
                task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)


async def _listen(app: Sanic, sock: socket.socket) -> AsyncioServer:
    server = await app.create_server(sock=sock, protocol=Connection)
    assert server is not None
    await server.startup()
    await server.before_start()
    await server.after_start()
    app.set_serving(True)
    return server


async def _stop_or_failure(stopping: asyncio.Task[bool], engine: Engine) -> None:
    """Waits for the stop; raises if the engine fails before."""
    while engine.failure is None:
        done, _ = await asyncio.wait([stopping], timeout=_POLL_S)
        if done:
            return
    await asyncio.wait([stopping], timeout=_FAREWELL_S)
    raise EngineError(engine.failure)


async def _drain(engine: Engine, config: ServerConfig) -> None:
    # The port stays open meanwhile: /health says 503, and no caller sees a refused connection.
    logger.info("draining: running requests have %.0f s", config.drain_timeout_s)
    await engine.drain(config.drain_timeout_s)


async def _close(server: AsyncioServer) -> None:
    """Stops listening, lets written answers reach their clients, then cuts what is left."""
    assert server.server is not None
    server.server.close()
    for _ in range(20):
        for connection in list(server.connections):
            connection.close_if_idle()
        if not server.connections:
            break
        await asyncio.sleep(0.05)
    for connection in list(server.connections):
        connection.abort()
    await server.before_stop()
    await server.after_stop()


def _url(host: str, port: int) -> str:
    return f"http://{'localhost' if host in ('0.0.0.0', '::') else host}:{port}"
