"""Requests for the engine, each with what it may not choose freely: its grammar, its reasoning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rtpjax.engine.request import GenerationRequest, Grammar, SamplingParams
from server.context import ModelContext
from server.function_calls.support import CallSupport
from server.generation import make_requests
from server.grammars.wanted import wanted_grammar
from server.prompt import EncodedPrompt
from server.protocol.body import field_error
from server.protocol.form import FormFields
from server.reasoning_parsers import NONE


def plain_requests(
    context: ModelContext,
    body: FormFields,
    prompts: Sequence[EncodedPrompt],
    params: Sequence[SamplingParams],
) -> list[GenerationRequest]:
    """The requests of an API without functions.

    Raises:
        RequestError: What is asked of the answer's form cannot be honoured.
    """
    support = context.templates.without_tools
    drop_idle_budget(context, support, body)
    return constrained_requests(support, body, prompts, params, wanted_grammar(body))


def drop_idle_budget(context: ModelContext, support: CallSupport, body: FormFields) -> None:
    """Takes off a limit on the reasoning of a model that does not reason: it keeps to any."""
    if body.thinking_budget and support.reasoning_format == NONE:
        why = "the model does not reason, or not as REASONING_PARSER knows it"
        context.fields.say("thinking_budget", why)
        body.thinking_budget = None


def constrained_requests(
    support: CallSupport,
    body: FormFields,
    prompts: Sequence[EncodedPrompt],
    params: Sequence[SamplingParams],
    grammar: Grammar | None,
) -> list[GenerationRequest]:
    """One request per choice, the first prompt's first.

    Args:
        support: Knows how the model reasons.
        body: What was asked for.
        prompts: At least one.
        params: One entry per choice.
        grammar: What constrains the answers.

    Raises:
        RequestError: It cannot be honoured together with beams, or the model does not reason.
    """
    if body.num_beams > 1 and (grammar is not None or body.thinking_budget is not None):
        field = "thinking_budget" if grammar is None else grammar.param
        raise field_error(field, "not supported together with num_beams")
    requests = make_requests(body, prompts, params, grammar)
    if body.thinking_budget is None:
        return requests
    budget = body.thinking_budget
    limits = [support.reasoning_limit(budget, p.text) for p in prompts for _ in params]
    return [replace(r, reasoning_limit=x) for r, x in zip(requests, limits, strict=True)]


def with_names(
    requests: Sequence[GenerationRequest], name: Callable[[str], str]
) -> list[GenerationRequest]:
    """The requests, whose grammars' errors name the fields of another API.

    Args:
        requests: Of a chat request.
        name: The other API's name of a chat request's field.
    """
    return [
        request
        if request.grammar is None
        else replace(request, grammar=_named(request.grammar, name))
        for request in requests
    ]


def _named(grammar: Grammar, name: Callable[[str], str]) -> Grammar:
    other = None if grammar.instead is None else _named(grammar.instead, name)
    return replace(grammar, param=name(grammar.param), instead=other)
