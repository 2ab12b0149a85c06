"""POST / and POST /batch_infer: RTP-LLM's own API."""

from __future__ import annotations

from server.beam_search import recorder_of
from server.chat_job import encode_chat
from server.constrained import plain_requests
from server.context import ModelContext
from server.generation import Job, check_choices, sampling_of
from server.output import Usage
from server.prompt import EncodedPrompt, check_length
from server.protocol.raw import RawPrompt, RawRequest, parse_raw
from server.raw_answer import RAW_DONE, RawAnswer, raw_failure
from server.routes import Route, takes


@takes(RawRequest, generates=True)
def infer(content: bytes, context: ModelContext) -> Job:
    """Continues one or several prompts."""
    return _job(content, context, is_batch=False)


@takes(RawRequest, generates=True)
def batch_infer(content: bytes, context: ModelContext) -> Job:
    """The same, answered as a batch in one piece."""
    return _job(content, context, is_batch=True)


def _job(content: bytes, context: ModelContext, *, is_batch: bool) -> Job:
    body = parse_raw(content, context.fields, is_batch=is_batch)
    sampling = body.sampling
    check_choices(sampling, len(body.prompts), context)
    params = sampling_of(sampling, context, max_tokens=sampling.max_tokens, logprobs=None)
    prompts = [_encode(context, prompt) for prompt in body.prompts]
    for prompt in prompts:
        check_length(len(prompt.token_ids), context.engine.max_model_len, param="prompt")
    requests = plain_requests(context, sampling, prompts, params)
    recorder = recorder_of(context, sampling, requests)
    return Job(
        requests=requests,
        answer=RawAnswer(body.form, recorder),
        usage=Usage(choices_per_prompt=sampling.n),
        is_stream=body.form.is_stream,
        include_usage=False,
        recorder=recorder,
        end=RAW_DONE,
        failure=raw_failure,
    )


def _encode(context: ModelContext, prompt: RawPrompt) -> EncodedPrompt:
    if isinstance(prompt, str):
        return context.encoder.encode_completion(prompt)
    return encode_chat(context, prompt)


ROUTES = [Route("POST", "/", infer, "caller"), Route("POST", "/batch_infer", batch_infer, "caller")]
