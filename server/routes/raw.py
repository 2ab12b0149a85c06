"""POST / and POST /batch_infer: RTP-LLM's own API."""

from __future__ import annotations

from sanic import HTTPResponse, Request

from server.beam_search import recorder_of
from server.chat_job import encode_chat
from server.constrained import plain_requests
from server.context import ServerContext
from server.generation import Job, answer, check_choices, sampling_of
from server.output import Usage
from server.prompt import EncodedPrompt, check_lengths
from server.protocol.raw import RawPrompt, RawRequest, parse_raw
from server.raw_answer import RAW_DONE, RawAnswer, raw_failure
from server.routes import Route, context_of, takes


@takes(RawRequest)
async def infer(request: Request) -> HTTPResponse | None:
    """Continues one or several prompts."""
    return await _infer(request, is_batch=False)


@takes(RawRequest)
async def batch_infer(request: Request) -> HTTPResponse | None:
    """The same, answered as a batch in one piece."""
    return await _infer(request, is_batch=True)


async def _infer(request: Request, *, is_batch: bool) -> HTTPResponse | None:
    context = context_of(request)
    context.check_available()
    body = parse_raw(request.body, is_batch=is_batch)
    sampling = body.sampling
    check_choices(sampling, len(body.prompts), context)
    params = await sampling_of(sampling, context, max_tokens=sampling.max_tokens, logprobs=None)
    prompts = [await _encode(context, prompt) for prompt in body.prompts]
    for prompt in prompts:
        num_tokens, longest = len(prompt.token_ids), context.engine.max_model_len
        check_lengths(num_tokens, sampling.max_tokens, longest, param="prompt")
    requests = plain_requests(context, sampling, prompts, params)
    recorder = recorder_of(context, sampling, requests)
    job = Job(
        requests=requests,
        answer=RawAnswer(body, recorder),
        usage=Usage(choices_per_prompt=sampling.n),
        is_stream=body.is_stream,
        include_usage=False,
        recorder=recorder,
        end=RAW_DONE,
        failure=raw_failure,
    )
    return await answer(request, context, job)


async def _encode(context: ServerContext, prompt: RawPrompt) -> EncodedPrompt:
    if isinstance(prompt, str):
        return await context.encoder.encode_completion(prompt)
    return await encode_chat(context, prompt)


ROUTES = [Route("POST", "/", infer, "caller"), Route("POST", "/batch_infer", batch_infer, "caller")]
