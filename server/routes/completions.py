"""POST /v1/completions: plain text in, plain text out."""

from __future__ import annotations

from sanic import HTTPResponse, Request

from server.completion_answer import CompletionAnswer
from server.generation import Job, answer, check_choices, make_requests
from server.output import Usage
from server.prompt import check_lengths
from server.protocol.body import parse_body
from server.protocol.completions import CompletionRequest
from server.routes import context_of


async def completions(request: Request) -> HTTPResponse | None:
    """Continues one or several prompts, each in `n` ways."""
    context = context_of(request)
    context.check_available()
    body = parse_body(request.body, CompletionRequest)
    check_choices(body, len(body.prompts), context)
    encoder, engine = context.encoder, context.engine
    params = [
        body.sampling_params(
            choice,
            max_tokens=body.max_tokens,
            logprobs=body.logprobs,
            vocab_size=encoder.vocab_size,
        )
        for choice in range(body.n)
    ]
    prompts = [await encoder.encode_completion(prompt) for prompt in body.prompts]
    for prompt in prompts:
        num_tokens = len(prompt.token_ids)
        check_lengths(num_tokens, body.max_tokens, engine.max_model_len, param="prompt")
    echoes = [prompt.text for prompt in prompts for _ in params] if body.echo else []
    job = Job(
        requests=make_requests(body, prompts, params),
        answer=CompletionAnswer(
            engine.model_name, context.token_text, with_usage=body.include_usage, echoes=echoes
        ),
        usage=Usage(choices_per_prompt=body.n),
        is_stream=body.stream,
        include_usage=body.include_usage,
    )
    return await answer(request, context, job)


ROUTES = [("POST", "/v1/completions", completions), ("POST", "/completions", completions)]
