"""POST /v1/chat/completions, and several of them in one body. RTP-LLM's users leave out /v1."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sanic import HTTPResponse, Request

from rtpjax.errors import RequestError
from server.chat_job import chat_job
from server.context import ModelContext, ServerContext
from server.generation import Job, run_whole
from server.protocol.batch_chat import BatchChatRequest, parse_batch
from server.protocol.body import parse_body
from server.protocol.chat import ChatRequest
from server.routes import Route, takes


@takes(ChatRequest, generates=True)
def chat_completions(body: bytes, context: ModelContext) -> Job:
    """Answers a conversation."""
    return chat_job(context, parse_body(body, ChatRequest, context.fields))


@takes(BatchChatRequest, generates=True)
def batch_chat_completions(body: bytes, context: ModelContext) -> Batch:
    """Answers several conversations at once; if one of them fails, all do."""
    bodies = parse_batch(body, context.config.max_choices, context.fields)
    return Batch([_job(context, f"requests[{i}]", chat) for i, chat in enumerate(bodies)])


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs whose answers are one response."""

    jobs: list[Job]

    async def respond(self, request: Request, context: ServerContext) -> HTTPResponse:
        """Runs all jobs at once."""
        tasks = [asyncio.create_task(run_whole(request, context, job)) for job in self.jobs]
        try:
            responses = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        content = b'{"responses":[%b]}' % b",".join(responses)
        return HTTPResponse(content, content_type="application/json")


def _job(context: ModelContext, where: str, body: ChatRequest) -> Job:
    """The job of one request; its errors say which one is wrong."""
    try:
        return chat_job(context, body)
    except RequestError as error:
        param = f"{where}.{error.param}" if error.param else where
        raise RequestError(f"{where}: {error}", param=param, code=error.code) from error


ROUTES = [
    Route("POST", "/v1/chat/completions", chat_completions, "caller"),
    Route("POST", "/chat/completions", chat_completions, "caller"),
    Route("POST", "/v1/batch/chat/completions", batch_chat_completions, "caller"),
]
