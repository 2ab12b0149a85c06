"""POST /v1/chat/completions, and several of them in one body. RTP-LLM's users leave out /v1."""

from __future__ import annotations

import asyncio

from sanic import HTTPResponse, Request

from server.access_log import note_usage
from server.answer import dumps
from server.chat_job import chat_job
from server.generation import answer, run_whole, watch_for_disconnect
from server.protocol.batch_chat import BatchChatRequest, parse_batch
from server.protocol.body import parse_body
from server.protocol.chat import ChatRequest
from server.routes import context_of, takes


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
    jobs = [await chat_job(context, body) for body in bodies]
    watch_for_disconnect(request)
    tasks = [asyncio.create_task(run_whole(context, job)) for job in jobs]
    try:
        responses = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    note_usage(request, *(job.usage for job in jobs))
    return HTTPResponse(dumps({"responses": responses}), content_type="application/json")


ROUTES = [
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/chat/completions", chat_completions),
    ("POST", "/v1/batch/chat/completions", batch_chat_completions),
]
