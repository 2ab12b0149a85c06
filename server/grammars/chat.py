"""What constrains an answer to a chat: functions, a response_format, or both."""

from __future__ import annotations

import dataclasses

from rtpjax.engine.request import Grammar
from server.answer_parser import AnswerSyntax
from server.function_calls import CallOptions
from server.grammars.calls import CallStyle
from server.grammars.parameters import NotWritable
from server.protocol.body import field_error


def chat_grammar(
    wanted: Grammar | None, calls: CallOptions, syntax: AnswerSyntax | None
) -> Grammar | None:
    """What constrains the answer to a chat request; None if nothing does.

    Args:
        wanted: What the request wants of an answer that is no call.
        calls: What it says about function calls.
        syntax: How the answer is read. A constraint starts where open reasoning ends.

    Raises:
        RequestError: A schema cannot be used, or what is wanted cannot stand beside functions.
    """
    after = None
    if syntax is not None and syntax.reasoning is not None and syntax.is_reasoning_open:
        after = syntax.reasoning.closes
    if wanted is not None:
        wanted = dataclasses.replace(wanted, after=after)
    if syntax is None or syntax.style is None:
        return wanted
    if calls.choice == "required":
        return _forced(syntax.style, calls, after)
    if wanted is None:
        return _auto(syntax.style, calls, after)
    return _either(wanted, syntax.style, calls)


def _forced(style: CallStyle, calls: CallOptions, after: str | None) -> Grammar:
    try:
        return style.forced(calls, after=after)
    except NotWritable as error:
        raise field_error(calls.dialect, str(error)) from error


def _auto(style: CallStyle, calls: CallOptions, after: str | None) -> Grammar | None:
    """Text and calls; text alone where no function can be held to."""
    try:
        return style.auto(calls, after=after)
    except NotWritable:
        return None


def _either(wanted: Grammar, style: CallStyle, calls: CallOptions) -> Grammar:
    """Calls, or an answer as it is wanted."""
    if wanted.is_free_text:
        reason = "structural_tag cannot be combined with functions that may be called"
        raise field_error(wanted.param, reason)
    try:
        forced = style.forced(calls, after=wanted.after, is_exact=False)
    except NotWritable:
        return wanted
    return dataclasses.replace(forced, instead=dataclasses.replace(wanted, after=None))
