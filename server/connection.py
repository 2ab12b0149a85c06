"""One connection: what Sanic leaves open of HTTP, and what keeps a bad client from harming others.

- Every response gets the app's common headers (an id, CORS): also errors of Sanic's own, and those
  of requests whose head could not be read.
- A response that is given before the body was read ends the connection, and what still comes is
  dropped, so that the client reads the answer before its connection is reset. Nothing asks for the
  body of such a request (100 Continue).
- There are limits for connections and for the bodies that all requests hold together.
- A client that stops reading is cut off. One that has ended its own side only (shutdown of its
  sending half) gets its answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from dataclasses import dataclass
from typing import Any

from sanic.compat import Header
from sanic.exceptions import PayloadTooLarge, RequestCancelled, SanicException
from sanic.http import Http, Stage
from sanic.models.server_types import ConnInfo
from sanic.server.protocols.http_protocol import HttpProtocol

from server.errors import HttpError, Overloaded

logger = logging.getLogger(__name__)

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LINGER_S = 5.0  # how long what a refused client still sends is read and dropped
_PEER_CHECK_S = 0.5
_MAX_PEER_CHECK_S = 30.0


class HeadTooLarge(SanicException):
    """The request's head is over the limit."""

    status_code = 431
    quiet = True


@dataclass(slots=True)
class Limits:
    """What all connections of a server share.

    Attributes:
        max_connections: Further ones get a 503.
        max_body_bytes: Of the bodies of all requests, until each has been prepared.
        write_timeout_s: A client that takes nothing for this long, while there is something for it,
            is cut off.
        num_connections, held_body_bytes: What there is now.
    """

    max_connections: int
    max_body_bytes: int
    write_timeout_s: float
    num_connections: int = 0
    held_body_bytes: int = 0

    def take(self, num_bytes: int) -> None:
        """Counts bytes of a body.

        Raises:
            Overloaded: There are too many.
        """
        if self.held_body_bytes + num_bytes > self.max_body_bytes:
            raise Overloaded(
                "the bodies of the requests that are worked on fill what the setting MAX_BODIES_MB "
                "allows; try again later"
            )
        self.held_body_bytes += num_bytes


class _ResponseHeaders(Header):
    """Headers without the empty `alt-svc` that Sanic writes, which RFC 7838 does not allow."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name != "alt-svc":
            super().__setitem__(name, value)


class HttpRequests(Http):
    """The requests of one connection, one after the other."""

    __slots__ = ("_held_body_bytes", "_is_unread")

    protocol: Connection

    def __init__(self, protocol: Connection):
        super().__init__(protocol)
        self._held_body_bytes = 0
        self._is_unread = False

    @property
    def _limits(self) -> Limits:
        return self.protocol.app.ctx.server.limits

    async def http1(self) -> None:
        """Answers requests until the connection shall end."""
        try:
            await super().http1()
            if self._is_unread:
                await self._drop_input()
        finally:
            self.release_body()

    def init_for_request(self) -> None:
        """Forgets the request before."""
        super().init_for_request()
        self.release_body()

    async def http1_request_header(self) -> None:
        """Reads the head of a request."""
        try:
            await super().http1_request_header()
        except PayloadTooLarge as error:
            raise HeadTooLarge(
                f"the request's head (its first line and headers) is larger than "
                f"{self.HEADER_MAX_SIZE} bytes"
            ) from error

    async def read(self) -> bytes | None:
        """The next piece of a body."""
        data = await super().read()
        if data:
            self.hold(len(data))
        return data

    def hold(self, num_bytes: int) -> None:
        """Counts bytes of the body, until `release_body`.

        Raises:
            Overloaded: The bodies of all requests have too many.
        """
        self._limits.take(num_bytes)
        self._held_body_bytes += num_bytes

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        """Writes the head of a response, and what there is of its body."""
        if self.request_body:
            self._skip_body()
        if self.protocol.is_half_closed and not self.recv_buffer:
            self.keep_alive = False
        assert self.response is not None
        headers = _ResponseHeaders(self.response.headers)
        headers.update(self.protocol.app.ctx.common_headers(self.request))
        self.response.headers = headers
        await super().http1_response_header(data, end_stream)

    async def error_response(self, exception: Exception) -> None:
        """Answers a request that failed."""
        if self.stage is Stage.REQUEST:
            self._is_unread = True
        await super().error_response(exception)

    def _skip_body(self) -> None:
        """The answer is there before the body was read: nobody needs it any more."""
        self.release_body()
        self.expecting_continue = False
        left = self.request_bytes_left
        if self.request_body == "chunked" or left is None or left > len(self.recv_buffer):
            self._is_unread = True
            self.keep_alive = False
        else:
            del self.recv_buffer[:left]
        self.request_body = None

    async def _drop_input(self) -> None:
        assert self.protocol.transport is not None
        try:
            if self.protocol.transport.can_write_eof():
                self.protocol.transport.write_eof()
            async with asyncio.timeout(_LINGER_S):
                while True:
                    self.recv_buffer.clear()
                    await self._receive_more()
        except (TimeoutError, OSError):
            pass

    def release_body(self) -> None:
        """Called when nobody needs the body any more: its answer may take minutes."""
        self._limits.held_body_bytes -= self._held_body_bytes
        self._held_body_bytes = 0


class Connection(HttpProtocol):
    """A connection as asyncio sees it.

    Attributes:
        is_half_closed: The client has ended its side, and waits for an answer.
    """

    __slots__ = (
        "_is_reader_watched",
        "_is_receiving",
        "_is_refused",
        "_num_written",
        "is_half_closed",
    )

    HTTP_CLASS = HttpRequests

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.is_half_closed = False
        self._is_receiving = False
        self._is_refused = False
        self._num_written = 0
        self._is_reader_watched = False

    @property
    def _limits(self) -> Limits:
        return self.app.ctx.server.limits

    def connection_made(self, transport: Any) -> None:
        """Takes a new connection, or refuses one too many."""
        if self._limits.num_connections < self._limits.max_connections:
            self._limits.num_connections += 1
            super().connection_made(transport)
            return
        self._is_refused = True
        self.transport = transport
        self.conn_info = ConnInfo(transport)
        transport.write(_too_many_connections())
        transport.write_eof()
        # What it sends is dropped for a moment: a reset would take the answer away from it.
        self.loop.call_later(_LINGER_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends what was done for the connection."""
        if not self._is_refused:
            self._limits.num_connections -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what the client sends."""
        if not self._is_refused:
            super().data_received(data)

    async def receive_more(self) -> None:
        """Waits for more from the client."""
        assert self.transport is not None
        if self.is_half_closed:
            self.close()  # there will be no more; once it is closed, the task that waits here ends
            await self.loop.create_future()
        self._is_receiving = True
        try:
            await super().receive_more()
        finally:
            self._is_receiving = False

    def eof_received(self) -> bool:
        """The client has ended its side. True keeps ours open, for the answer."""
        if self._is_refused or self._is_receiving:
            return False
        self.is_half_closed = True
        self._check_peer_later(_PEER_CHECK_S)
        return True

    def _check_peer_later(self, delay_s: float) -> None:
        self.loop.call_later(delay_s, self._check_peer, delay_s)

    def _check_peer(self, delay_s: float) -> None:
        """Ends a half-closed connection if the client has closed all of it.

        The two look the same until something is written: a closed socket then answers with a reset.
        A stream writes anyway. Where the response has not begun, an interim response does it, which
        every client has to skip (RFC 9110, 15.2).
        """
        if self.transport is None or self.transport.is_closing():
            return
        sock = self.transport.get_extra_info("socket")
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if self._http is not None and self._http.stage is Stage.HANDLER:
            self.transport.write(_CONTINUE)
        self._check_peer_later(min(2 * delay_s, _MAX_PEER_CHECK_S))

    async def send(self, data: bytes) -> None:
        """Writes to the client once it has taken enough of what was written before.

        As Sanic's own, without the signal before each piece, which nobody here listens to: it takes
        longer than the rest of an event.
        """
        await self._can_write.wait()
        if self.transport is None or self.transport.is_closing():
            raise RequestCancelled
        self.transport.write(data)
        self._time = time.monotonic()
        self._num_written += len(data)

    def pause_writing(self) -> None:
        """The client does not take what is written as fast as it comes."""
        super().pause_writing()
        self._watch_reader()

    def close(self, timeout: float | None = None) -> None:
        """Closes the connection when everything has been written."""
        super().close(timeout)
        self._watch_reader()

    def _watch_reader(self) -> None:
        if not self._is_reader_watched and self._num_unread:
            self._is_reader_watched = True
            self._check_reader_later()

    def _check_reader_later(self) -> None:
        num_taken = self._num_written - self._num_unread
        self.loop.call_later(self._limits.write_timeout_s, self._check_reader, num_taken)

    def _check_reader(self, num_taken: int) -> None:
        """Cuts off a client that has taken no more than the `num_taken` bytes of the last check."""
        if not self._num_unread:
            self._is_reader_watched = False
        elif self._num_written - self._num_unread > num_taken:
            self._check_reader_later()
        else:
            assert self.transport is not None
            seconds = self._limits.write_timeout_s
            logger.warning("cut off a client that read nothing for %g s (WRITE_TIMEOUT_S)", seconds)
            self.transport.abort()

    @property
    def _num_unread(self) -> int:
        """Bytes that wait for the client beside what the operating system holds; 0 if it left."""
        if self.transport is None or self.conn_info is None or self.conn_info.lost:
            return 0
        return self.transport.get_write_buffer_size()


def _too_many_connections() -> bytes:
    error = HttpError(
        503, "this server has as many connections as MAX_CONNECTIONS allows; try again later"
    )
    body = json.dumps(error.as_json()).encode()
    return (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
