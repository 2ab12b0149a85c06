"""A checked chat request -> the job that answers it, for every route that takes chat requests."""

from __future__ import annotations

from rtpjax.engine.request import GenerationRequest
from rtpjax.errors import ConfigError
from server.answer_parser import AnswerSyntax
from server.beam_search import recorder_of
from server.chat_answer import ChatAnswer
from server.chat_template import ChatTemplate
from server.constrained import constrained_requests
from server.context import ModelContext
from server.debug_info import DebugInfo
from server.extras import Extras, with_extras
from server.function_calls.support import CallSupport
from server.generation import Job, adapt_sampling, check_choices, sampling_of
from server.grammars.chat import chat_grammar
from server.grammars.wanted import wanted_grammar
from server.lanes import SLOW, NeedsLane
from server.output import Usage
from server.prompt import EncodedPrompt, check_lengths
from server.protocol.body import field_error
from server.protocol.chat import ChatRequest


def chat_job(context: ModelContext, body: ChatRequest) -> Job:
    """The job of a chat completion.

    Raises:
        RequestError: The template refuses the messages, or they do not fit the context.
    """
    prompt, requests, syntax = chat_requests(context, body)
    job = Job(
        requests=requests,
        answer=ChatAnswer(
            context.engine.model_name,
            context.token_text,
            with_usage=body.include_usage,
            calls=body.calls,
        ),
        usage=Usage(choices_per_prompt=body.n),
        is_stream=body.stream,
        include_usage=body.include_usage,
        syntax=syntax,
    )
    if body.num_beams > 1:
        job.recorder = recorder_of(context, body, requests)
    extras = Extras(
        token_ids=body.return_token_ids,
        prompt_logprobs=body.prompt_logprobs is not None,
        aux_info=body.aux_info,
        debug_info=debug_info(context, prompt, requests[0]) if body.debug_info else None,
    )
    return with_extras(context, job, extras)


def chat_requests(
    context: ModelContext,
    body: ChatRequest,
    *,
    param: str = "messages",
    is_cut_to_fit: bool = False,
) -> tuple[EncodedPrompt, list[GenerationRequest], AnswerSyntax | None]:
    """The prompt of a chat request, a request for the engine per choice, and how to read answers.

    Args:
        context: The server's.
        body: The chat request.
        param: The field that an error about the prompt's length names.
        is_cut_to_fit: Fewer tokens than asked for are generated if the context has no more room.

    Raises:
        RequestError: The template refuses the messages, they do not fit the context, or what is
            asked of the answer's form cannot be honoured.
    """
    check_choices(body, 1, context)
    support = _call_support(context, body)
    prompt = _encode(context, body, support)
    syntax = support.syntax(body.calls, prompt.text)
    grammar = chat_grammar(wanted_grammar(body), body.calls, syntax)
    num_prompt, max_tokens = len(prompt.token_ids), body.max_new_tokens
    longest = context.engine.max_model_len
    if is_cut_to_fit and max_tokens is not None:
        max_tokens = max(1, min(max_tokens, longest - num_prompt))
    check_lengths(num_prompt, max_tokens, longest, param=param)
    params = sampling_of(body, context, max_tokens=max_tokens, logprobs=body.num_logprobs)
    params = adapt_sampling(params, syntax, context)
    return prompt, constrained_requests(support, body, [prompt], params, grammar), syntax


def encode_chat(context: ModelContext, body: ChatRequest) -> EncodedPrompt:
    """The prompt of a chat request, by the model's template or, if allowed, the request's own."""
    return _encode(context, body, _call_support(context, body))


def _encode(context: ModelContext, body: ChatRequest, support: CallSupport) -> EncodedPrompt:
    if body.reasoning_effort is not None:
        support.check_effort(body.reasoning_effort)
    encoder = context.encoder.with_calls(support)
    return encoder.encode_chat(body.messages, body.template_kwargs, body.calls)


def _call_support(context: ModelContext, body: ChatRequest) -> CallSupport:
    """The model's, for its template or, if allowed, the request's own."""
    if body.user_template is None:
        return context.calls
    if not context.config.allow_user_template:
        reason = "not allowed by this server (its setting ALLOW_USER_TEMPLATE)"
        raise field_error("user_template", reason)
    if context.lane != SLOW:  # it may run for seconds, which the others must not wait for
        raise NeedsLane(SLOW)
    template = _user_template(context, body.user_template)
    return context.calls.with_template(template)


def debug_info(
    context: ModelContext, prompt: EncodedPrompt, request: GenerationRequest
) -> DebugInfo:
    """What can be told about a prompt before it is answered."""
    engine = context.engine
    return DebugInfo(engine.tokenizer, prompt, request.sampling, engine.max_model_len)


def _user_template(context: ModelContext, source: str) -> ChatTemplate:
    special = context.engine.tokenizer.special_tokens_map.items()
    try:
        return ChatTemplate(
            source,
            {name: str(token) for name, token in special},
            timeout_s=context.config.template_timeout_s,
        )
    except (ConfigError, RecursionError) as error:
        raise field_error("user_template", str(error)) from error
