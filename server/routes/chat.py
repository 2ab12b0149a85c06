"""POST /v1/chat/completions, and several of them in one body. RTP-LLM's users leave out /v1."""

from __future__ import annotations

import asyncio

from sanic import HTTPResponse, Request

from rtpjax.errors import RequestError
from server.answer import dumps
from server.chat_job import chat_job
from server.context import ServerContext
from server.generation import Job, answer, run_whole, watch_for_disconnect
from server.protocol.batch_chat import BatchChatRequest, parse_batch
from server.protocol.body import parse_body
from server.protocol.chat import ChatRequest
from server.routes import Route, context_of, takes


@takes(ChatRequest)
async def chat_completions(request: Request) -> HTTPResponse | None:
    """Answers a conversation."""
    context = context_of(request)
    context.check_available()
    body = parse_body(request.body, ChatRequest)
    return await answer(request, context, await chat_job(context, body))


@takes(BatchChatRequest)
async def batch_chat_completions(request: Request) -> HTTPResponse:
    """Answers several conversations at once; if one of them fails, all do."""
    context = context_of(request)
    context.check_available()
    bodies = parse_batch(request.body, context.config.max_choices)
    jobs = [await _job(context, f"requests[{i}]", body) for i, body in enumerate(bodies)]
    watch_for_disconnect(request)
    tasks = [asyncio.create_task(run_whole(request, context, job)) for job in jobs]
    try:
        responses = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return HTTPResponse(dumps({"responses": responses}), content_type="application/json")


async def _job(context: ServerContext, where: str, body: ChatRequest) -> Job:
    """The job of one request; its errors say which one is wrong."""
    try:
        return await chat_job(context, body)
    except RequestError as error:
        param = f"{where}.{error.param}" if error.param else where
        raise RequestError(f"{where}: {error}", param=param, code=error.code) from error


ROUTES = [
    Route("POST", "/v1/chat/completions", chat_completions, "caller"),
    Route("POST", "/chat/completions", chat_completions, "caller"),
    Route("POST", "/v1/batch/chat/completions", batch_chat_completions, "caller"),
]
