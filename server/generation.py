"""One answer from checked request to last byte, streamed or whole, for every generating API."""

from __future__ import annotations

import secrets
from asyncio import ReadTransport
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import cast

from sanic import HTTPResponse, Request

from rtpjax.engine.request import GenerationRequest, Grammar, SamplingParams
from rtpjax.errors import RequestError
from server.access_log import note_usage
from server.answer import AnswerFormat, dumps
from server.answer_parser import AnswerSyntax, parsed
from server.context import ServerContext
from server.output import Delta, Usage, deltas, join
from server.prompt import EncodedPrompt
from server.protocol.sampling import SamplingFields
from server.sse import DONE, send_events


@dataclass(frozen=True, slots=True)
class Job:
    """An answer to make: the engine's requests, and how it is written.

    Attributes:
        syntax: How the text is to be read; None takes it as it is.
    """

    requests: list[GenerationRequest]
    answer: AnswerFormat
    usage: Usage
    is_stream: bool
    include_usage: bool
    syntax: AnswerSyntax | None = None


def check_choices(body: SamplingFields, num_prompts: int, context: ServerContext) -> None:
    """Refuses a request for more sequences than the operator allows."""
    most = context.config.max_choices if num_prompts == 1 else max(128, context.config.max_choices)
    if body.n * num_prompts > most:
        message = f"n: {body.n} choices for {num_prompts} prompts, at most {most} are allowed"
        raise RequestError(message, param="n")


def make_requests(
    body: SamplingFields,
    prompts: Sequence[EncodedPrompt],
    params: Sequence[SamplingParams],
    grammar: Grammar | None = None,
) -> list[GenerationRequest]:
    """One request per choice, the first prompt's first; `params` has one entry per choice."""
    return [
        GenerationRequest(
            request_id=secrets.token_hex(12),
            prompt_token_ids=prompt.token_ids,
            sampling=sampling,
            cache_salt=body.cache_salt,
            priority=body.priority,
            grammar=grammar,
        )
        for prompt in prompts
        for sampling in params
    ]


def adapt_sampling(
    params: Sequence[SamplingParams], syntax: AnswerSyntax | None, context: ServerContext
) -> list[SamplingParams]:
    """The parameters with what a syntax needs: its stop strings, and its marks in the text."""
    if syntax is None:
        return list(params)
    skip_special = not context.calls.needs_special_tokens(syntax)
    stop = () if syntax.tools is None else syntax.tools.stop
    return [
        replace(
            sampling,
            stop=sampling.stop + stop,
            skip_special_tokens=sampling.skip_special_tokens and skip_special,
        )
        for sampling in params
    ]


async def answer(request: Request, context: ServerContext, job: Job) -> HTTPResponse | None:
    """Runs the job and responds.

    When the client leaves, Sanic cancels us; closing the stream then aborts the engine's work.
    """
    _watch_for_disconnect(request)
    async with AsyncExitStack() as stack:
        texts = deltas(context.engine, job.requests, job.usage, context.metrics)
        stream = await stack.enter_async_context(aclosing(texts))
        if job.syntax is not None:
            syntaxes = [job.syntax] * len(job.requests)
            stream = await stack.enter_async_context(aclosing(parsed(stream, syntaxes)))
        if job.is_stream:
            async with aclosing(_events(job, stream)) as events:
                await send_events(request, events)
            note_usage(request, job.usage)
            return None
        choices = join([delta async for delta in stream])
    note_usage(request, job.usage)
    body = dumps(job.answer.whole(choices, job.usage))
    return HTTPResponse(body, content_type="application/json")


async def _events(job: Job, stream: AsyncIterator[Delta]) -> AsyncGenerator[bytes, None]:
    started: set[int] = set()
    async for delta in stream:
        event = job.answer.delta(delta)
        if delta.index not in started:
            started.add(delta.index)
            event = (job.answer.first(delta.index) or b"") + event
        yield event
    yield (job.answer.usage(job.usage) if job.include_usage else b"") + DONE


def _watch_for_disconnect(request: Request) -> None:
    # Sanic stops reading while a large body waits in its buffer, and nothing starts it again once
    # the handler runs; a socket that is not read does not tell that the client has closed it.
    # (uvloop's transports are no subclass of asyncio's, so only a cast says what it is.)
    if request.transport is not None:
        cast(ReadTransport, request.transport).resume_reading()
