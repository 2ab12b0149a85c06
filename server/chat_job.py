"""A checked chat request -> the job that answers it, for every route that takes chat requests."""

from __future__ import annotations

from dataclasses import replace

from rtpjax.engine.request import GenerationRequest
from rtpjax.errors import ConfigError
from server.answer_parser import AnswerSyntax
from server.beam_search import recorder_of
from server.chat_answer import ChatAnswer
from server.chat_template import ChatTemplate
from server.constrained import constrained_requests, drop_idle_budget
from server.context import ModelContext
from server.debug_info import DebugInfo
from server.extras import Extras, with_extras
from server.function_calls.support import CallSupport
from server.generation import Job, adapt_sampling, check_choices, sampling_of
from server.grammars.chat import chat_grammar
from server.grammars.wanted import wanted_grammar
from server.lanes import SLOW, NeedsLane
from server.output import Usage
from server.prompt import EncodedPrompt, check_length
from server.protocol.body import field_error
from server.protocol.chat import ChatRequest
from server.reasoning_tokens import reasoning_counters
from server.template_process import callers_processes


def chat_job(context: ModelContext, body: ChatRequest) -> Job:
    """The job of a chat completion.

    Raises:
        RequestError: The template refuses the messages, or they do not fit the context.
    """
    prompt, requests, syntax = chat_requests(context, body)
    usage = chat_usage(context, syntax, body.n)
    job = Job(
        requests=requests,
        answer=ChatAnswer(
            context.model_names[0],
            context.token_text,
            with_usage=body.include_usage,
            fingerprint=context.fingerprint,
            usage_so_far=usage if body.has_usage_in_chunks else None,
            calls=body.calls,
        ),
        usage=usage,
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


def chat_usage(context: ModelContext, syntax: AnswerSyntax | None, num_choices: int) -> Usage:
    """The usage of an answer whose reasoning is told apart."""
    grammar = None if syntax is None else syntax.reasoning
    is_open = syntax is not None and syntax.is_reasoning_open
    counters = reasoning_counters(grammar, context.token_text, num_choices, is_open=is_open)
    return Usage(num_choices, counters)


def chat_requests(
    context: ModelContext,
    body: ChatRequest,
    *,
    param: str = "messages",
) -> tuple[EncodedPrompt, list[GenerationRequest], AnswerSyntax | None]:
    """The prompt of a chat request, a request for the engine per choice, and how to read answers.

    Args:
        context: The server's.
        body: The chat request.
        param: The field that an error about the prompt's length names.

    Raises:
        RequestError: The template refuses the messages, they do not fit the context, or what is
            asked of the answer's form cannot be honoured.
    """
    check_choices(body, 1, context)
    support = _call_support(context, body)
    if body.thinking_budget is None and body.num_beams == 1:
        body.thinking_budget = support.budget_of(body.reasoning_effort)
    drop_idle_budget(context, support, body)
    prompt = _encode(context, body, support)
    syntax = support.syntax(body.calls, prompt.text)
    if syntax is not None and body.leaves_out_reasoning:
        syntax = replace(syntax, leaves_out_reasoning=True)
    grammar = chat_grammar(wanted_grammar(body), body.calls, syntax)
    check_length(len(prompt.token_ids), context.engine.max_model_len, param=param)
    params = sampling_of(body, context, max_tokens=body.max_new_tokens, logprobs=body.num_logprobs)
    params = adapt_sampling(params, syntax, context)
    return prompt, constrained_requests(support, body, [prompt], params, grammar), syntax


def encode_chat(context: ModelContext, body: ChatRequest) -> EncodedPrompt:
    """The prompt of a chat request, by the model's template or, if allowed, the request's own."""
    return _encode(context, body, _call_support(context, body))


def _encode(context: ModelContext, body: ChatRequest, support: CallSupport) -> EncodedPrompt:
    variables = body.template_kwargs
    if body.reasoning_effort is not None:
        effort = support.effort_variables(body.reasoning_effort)
        if effort is None:
            why = "the model's chat template has no switch for it"
            context.fields.say(f"reasoning effort {body.reasoning_effort}", why)
        variables = (effort or {}) | variables
    return context.encoder.encode_chat(support, body.messages, variables, body.calls)


def _call_support(context: ModelContext, body: ChatRequest) -> CallSupport:
    """What renders for the template that the request gets, names, or, if allowed, brings."""
    if body.template_key:
        return context.templates.named(body.template_key, param="template_key")
    # As in transformers, the name of a template or the text of one.
    if body.chat_template is not None and body.chat_template in context.templates:
        return context.templates.named(body.chat_template, param="chat_template")
    field = "chat_template" if body.chat_template is not None else "user_template"
    source = getattr(body, field)
    if source is None:
        return context.templates.choose(has_tools=bool(body.calls.offered))
    if not context.config.allow_user_template:
        reason = "not allowed by this server (its setting ALLOW_USER_TEMPLATE)"
        raise field_error(field, reason)
    if context.lane != SLOW:  # it may run for seconds, which the others must not wait for
        raise NeedsLane(SLOW)
    template = _user_template(context, source, field)
    return context.templates.with_tools.with_template(template)


def debug_info(
    context: ModelContext, prompt: EncodedPrompt, request: GenerationRequest
) -> DebugInfo:
    """What can be told about a prompt before it is answered."""
    engine = context.engine
    return DebugInfo(engine.tokenizer, prompt, request.sampling, engine.max_model_len)


def _user_template(context: ModelContext, source: str, field: str) -> ChatTemplate:
    special = context.engine.tokenizer.special_tokens_map.items()
    try:
        return ChatTemplate(
            source,
            {name: str(token) for name, token in special},
            timeout_s=context.config.template_timeout_s,
            processes=callers_processes(),
        )
    except ConfigError as error:
        raise field_error(field, str(error)) from error
