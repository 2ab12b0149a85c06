"""Server-sent events: the answer as it is generated, and its end in any case."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from sanic import HTTPResponse, Request

from server.answer import dumps
from server.errors import HttpError, to_http_error

DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def openai_failure(error: HttpError) -> bytes:
    """How a stream of OpenAI's older APIs says that the rest of the answer will not come."""
    return b"data: " + dumps(error.as_json()) + b"\n\n" + DONE


def named_event(value: dict[str, Any]) -> bytes:
    """An event whose name is its `type`, as the newer APIs and Anthropic's send them."""
    return b"event: %b\ndata: %b\n\n" % (value["type"].encode(), dumps(value))


async def send_events(
    request: Request,
    events: AsyncIterator[bytes],
    *,
    failure: Callable[[HttpError], bytes] = openai_failure,
) -> None:
    """Writes `events` as the response of `request`.

    The status line waits for the first event: what fails before it is an ordinary HTTP error. Later
    there is only the stream to say it in; `failure` spells it.
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
        await response.send(failure(to_http_error(error, request)))
    await response.eof()
