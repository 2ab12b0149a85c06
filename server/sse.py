"""Server-sent events: the answer as it is generated, ended by `data: [DONE]` in any case."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sanic import HTTPResponse, Request

from server.answer import dumps
from server.errors import to_http_error

DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def send_events(request: Request, events: AsyncIterator[bytes]) -> None:
    """Writes `events` as the response of `request`.

    The status line waits for the first event: what fails before it is an ordinary HTTP error. Later
    there is only the stream to say it in.
    """
    event = await anext(events, DONE)
    response = await request.respond(
        content_type="text/event-stream; charset=utf-8", headers=_HEADERS
    )
    assert isinstance(response, HTTPResponse)
    try:
        await response.send(event)
        async for event in events:
            await response.send(event)
    except Exception as error:  # noqa: BLE001 (the error handler, once the headers are out)
        await response.send(b"data: " + dumps(to_http_error(error).as_json()) + b"\n\n" + DONE)
    await response.eof()
