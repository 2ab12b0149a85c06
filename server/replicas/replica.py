"""One replica: the server with its engine, inside a Ray actor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import aiohttp

from server.config import ServerConfig
from server.engine_protocol import Engine
from server.lifecycle import bind, serve
from server.replicas.messages import Head, HttpRequest, end_to_end

logger = logging.getLogger(__name__)

Prepare = Callable[[], tuple[Engine, ServerConfig]]


class Replica:
    """Runs the server on a port of this host's loopback, and passes requests on to it.

    For the way through a socket, nothing of the server is different here. In particular a caller
    that leaves closes a connection, and that aborts its request.

    Args:
        prepare: Makes the engine, its weights still to be loaded, and the server's settings.
    """

    async def __init__(self, prepare: Prepare):
        engine, config = await asyncio.to_thread(prepare)
        sock = bind("127.0.0.1", 0)
        base_url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self._stop = asyncio.Event()
        ready = asyncio.Event()
        self._server = asyncio.create_task(
            serve(engine, config, sock=sock, stop=self._stop, on_ready=lambda _: ready.set())
        )
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((self._server, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._server.done():
            await self._server  # raises what went wrong while loading
        self._session = aiohttp.ClientSession(
            base_url,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )

    async def handle(self, request: HttpRequest) -> AsyncIterator[Head | bytes]:
        """The answer: its head, then its body in pieces."""
        async with self._session.request(
            request.method, request.path, headers=request.headers, data=request.body
        ) as response:
            yield Head(response.status, end_to_end(list(response.headers.items())))
            async for piece in response.content.iter_any():
                yield piece

    def check_health(self) -> None:
        """Raises: RuntimeError: The server has ended; Ray Serve then replaces this replica."""
        if self._server.done():
            raise RuntimeError("the server of this replica has ended; its log says why")

    async def __del__(self) -> None:
        """Called by Ray Serve once this replica has no requests any more."""
        await self._session.close()
        self._stop.set()
        await self._server
