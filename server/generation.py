"""One answer from checked request to last byte, streamed or whole, for every generating API."""

from __future__ import annotations

import secrets
from asyncio import ReadTransport
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import cast

from sanic import HTTPResponse, Request

from rtpjax.engine.request import GenerationRequest, Grammar, SamplingParams
from rtpjax.errors import RequestError
from server.access_log import note_answer
from server.answer import AnswerFormat, dumps
from server.answer_parser import AnswerSyntax, parsed
from server.auth import Caller
from server.context import ModelContext, ServerContext
from server.engine_protocol import Engine
from server.errors import HttpError
from server.output import Delta, Usage, deltas, join
from server.prompt import EncodedPrompt
from server.protocol.sampling import SamplingFields
from server.recorder import Recorder
from server.sse import DONE, openai_failure, send_events


@dataclass(slots=True)
class Job:
    """An answer to make: the engine's requests, and how it is written.

    Attributes:
        syntax: How the text is to be read; None takes it as it is.
        recorder: Stands between us and the engine when the answer tells more than its text.
        end: What a stream ends with.
        failure: How a stream says that it failed.
    """

    requests: list[GenerationRequest]
    answer: AnswerFormat
    usage: Usage
    is_stream: bool
    include_usage: bool
    syntax: AnswerSyntax | None = None
    recorder: Recorder | None = None
    end: bytes = DONE
    failure: Callable[[HttpError], bytes] = openai_failure

    async def respond(self, request: Request, context: ServerContext) -> HTTPResponse | None:
        """Runs and answers; None if the answer was a stream, which has been sent."""
        return await answer(request, context, self)


def check_choices(body: SamplingFields, num_prompts: int, context: ModelContext) -> None:
    """Refuses a request for more sequences than the operator allows."""
    most = context.config.max_choices if num_prompts == 1 else max(128, context.config.max_choices)
    if body.n * num_prompts > most:
        message = f"n: {body.n} choices for {num_prompts} prompts, at most {most} are allowed"
        raise RequestError(message, param="n")


def sampling_of(
    body: SamplingFields,
    context: ModelContext,
    *,
    max_tokens: int | None,
    logprobs: int | None,
) -> list[SamplingParams]:
    """The engine's parameters for each choice of a prompt, with the model's defaults."""
    body.take_defaults(context.config.sampling_defaults)
    encoder = context.encoder
    bad_words = encoder.encode_bad_words(body.bad_words) if body.bad_words else ()
    return [
        body.sampling_params(
            choice,
            max_tokens=max_tokens,
            logprobs=logprobs,
            vocab_size=encoder.vocab_size,
            bad_words=bad_words,
        )
        for choice in range(body.n)
    ]


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
            timeout_s=body.timeout_ms / 1000 if body.timeout_ms > 0 else None,
            use_drafts=not body.force_disable_sp_run,
        )
        for prompt in prompts
        for sampling in params
    ]


def adapt_sampling(
    params: Sequence[SamplingParams], syntax: AnswerSyntax | None, context: ModelContext
) -> list[SamplingParams]:
    """The parameters with what a syntax needs: its stop strings, and its marks in the text."""
    if syntax is None:
        return list(params)
    skip_special = not context.templates.with_tools.needs_special_tokens(syntax)
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
    if job.is_stream:
        async with (
            _deltas(request, context, job) as stream,
            aclosing(_events(job, stream)) as events,
        ):
            await send_events(request, events, failure=job.failure)
        return None
    body = await run_whole(request, context, job)
    return HTTPResponse(body, content_type="application/json")


async def run_whole(request: Request, context: ServerContext, job: Job) -> bytes:
    """Runs the job and returns its answer in one piece, as JSON."""
    async with _deltas(request, context, job) as stream:
        choices = join([delta async for delta in stream])
    whole = job.answer.whole(choices, job.usage)
    return whole if isinstance(whole, bytes) else dumps(whole)


@asynccontextmanager
async def _deltas(
    request: Request, context: ServerContext, job: Job
) -> AsyncIterator[AsyncGenerator[Delta, None]]:
    """What the engine answers: the one way to it, for what its caller may ask for."""
    caller: Caller = request.ctx.caller
    requests = [caller.request(each) for each in job.requests]
    note_answer(request, job.answer.id, requests, job.usage)
    # A recorder generates as the engine does, which is all that deltas asks of one.
    engine = context.engine if job.recorder is None else cast(Engine, job.recorder)
    ended: set[int] = set()
    async with AsyncExitStack() as stack:
        stream = deltas(engine, requests, job.usage, context.metrics, ended)
        await stack.enter_async_context(aclosing(stream))
        if job.syntax is not None:
            stream = parsed(stream, [job.syntax] * len(job.requests), ended)
            await stack.enter_async_context(aclosing(stream))
        yield stream


async def _events(job: Job, stream: AsyncIterator[Delta]) -> AsyncGenerator[bytes, None]:
    started: set[int] = set()
    async for delta in stream:
        first = None
        if delta.index not in started:
            started.add(delta.index)
            first = job.answer.first(delta.index)
        yield (first or b"") + job.answer.delta(delta)
    yield (job.answer.usage(job.usage) if job.include_usage else b"") + job.end


def watch_for_disconnect(request: Request) -> None:
    """Lets Sanic notice a client that leaves while its request is answered."""
    # Sanic stops reading while a large body waits in its buffer, and nothing starts it again once
    # the handler runs; a socket that is not read does not tell that the client has closed it.
    # (uvloop's transports are no subclass of asyncio's, so only a cast says what it is.)
    if request.transport is not None:
        cast(ReadTransport, request.transport).resume_reading()
