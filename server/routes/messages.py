"""Anthropic's POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from rtpjax.errors import RequestError
from server.chat_job import chat_requests, chat_usage, encode_chat
from server.constrained import with_names
from server.context import ModelContext
from server.generation import Job
from server.messages_answer import MessagesAnswer, messages_failure
from server.protocol.anthropic_messages import (
    CountRequest,
    MessagesRequest,
    in_our_names,
    our_name,
    parse_count,
    parse_messages,
)
from server.routes import Reply, Route, takes


@takes(MessagesRequest, generates=True)
def messages(content: bytes, context: ModelContext) -> Job:
    """Answers a conversation."""
    body = parse_messages(content, context.fields)
    try:
        prompt, requests, syntax = chat_requests(context, body)
    except RequestError as error:
        raise in_our_names(error) from error
    requests = with_names(requests, our_name)
    wanted = body.max_tokens or 0
    is_cut = wanted > context.engine.max_model_len - len(prompt.token_ids)
    usage = chat_usage(context, syntax, 1)
    return Job(
        requests=requests,
        answer=MessagesAnswer(
            context.model_names[0],
            usage,
            is_cut=is_cut,
            stop_sequences=body.stop,
            is_forced=body.calls.choice == "required",
            hides_thinking=body.hides_thinking,
        ),
        usage=usage,
        is_stream=body.stream,
        include_usage=True,
        syntax=syntax,
        end=b"",
        failure=messages_failure,
    )


@takes(CountRequest)
def count_tokens(content: bytes, context: ModelContext) -> Reply:
    """The length of a prompt."""
    body = parse_count(content, context.fields)
    try:
        prompt = encode_chat(context, body)
    except RequestError as error:
        raise in_our_names(error) from error
    return Reply({"input_tokens": len(prompt.token_ids)})


ROUTES = [
    Route("POST", "/v1/messages", messages, "caller"),
    Route("POST", "/v1/messages/count_tokens", count_tokens, "caller"),
]
