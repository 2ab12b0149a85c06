"""POST /v1/completions: plain text in, plain text out."""

from __future__ import annotations

from dataclasses import replace

from server.beam_search import recorder_of
from server.completion_answer import CompletionAnswer
from server.constrained import plain_requests
from server.context import ModelContext
from server.extras import Extras, with_extras
from server.generation import Job, check_choices, sampling_of
from server.output import Usage
from server.prompt import check_length
from server.protocol.body import parse_body
from server.protocol.completions import CompletionRequest
from server.routes import Route, takes


@takes(CompletionRequest, generates=True)
def completions(content: bytes, context: ModelContext) -> Job:
    """Continues one or several prompts, each in `n` ways."""
    body = parse_body(content, CompletionRequest, context.fields)
    check_choices(body, len(body.prompts), context)
    encoder, engine = context.encoder, context.engine
    params = sampling_of(body, context, max_tokens=body.max_new_tokens, logprobs=body.logprobs)
    if body.scores_echo:
        num_top = max(body.logprobs or 0, body.prompt_logprobs or 0)
        params = [replace(choice, prompt_logprobs=num_top) for choice in params]
    prompts = [
        encoder.encode_completion(prompt, add_special_tokens=body.add_special_tokens)
        for prompt in body.prompts
    ]
    for prompt in prompts:
        check_length(len(prompt.token_ids), engine.max_model_len, param="prompt")
    requests = plain_requests(context, body, prompts, params)
    echoes = [prompt.text for prompt in prompts for _ in params] if body.echo else []
    is_followed = body.scores_echo or body.num_beams > 1
    recorder = recorder_of(context, body, requests) if is_followed else None
    usage = Usage(choices_per_prompt=body.n)
    job = Job(
        requests=requests,
        answer=CompletionAnswer(
            context.model_names[0],
            engine.tokenizer,
            context.token_text,
            requests,
            with_usage=body.include_usage,
            fingerprint=context.fingerprint,
            usage_so_far=usage if body.has_usage_in_chunks else None,
            echoes=echoes,
            recorder=recorder if body.scores_echo else None,
            num_top=body.logprobs or 0,
        ),
        usage=usage,
        is_stream=body.stream,
        include_usage=body.include_usage,
        recorder=recorder,
    )
    extras = Extras(
        token_ids=body.return_token_ids,
        prompt_logprobs=body.prompt_logprobs is not None,
        aux_info=body.aux_info,
        per_choice=True,
    )
    return with_extras(context, job, extras)


ROUTES = [
    Route("POST", "/v1/completions", completions, "caller"),
    Route("POST", "/completions", completions, "caller"),
]
