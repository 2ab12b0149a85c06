"""POST /v1/responses: OpenAI's newer API, without its storage."""

from __future__ import annotations

import dataclasses

from sanic import HTTPResponse, Request

from rtpjax.engine.request import GenerationRequest
from rtpjax.errors import RequestError
from server.beam_search import recorder_of
from server.chat_job import chat_requests
from server.generation import Job, answer
from server.output import Usage
from server.protocol.responses import NAME_OF, ResponsesRequest, parse_responses, renamed
from server.responses_answer import ResponsesAnswer
from server.routes import context_of, takes


@takes(ResponsesRequest)
async def responses(request: Request) -> HTTPResponse | None:
    """Answers a text, or a list of items."""
    context = context_of(request)
    context.check_available()
    body = parse_responses(request.body)
    try:
        _, requests, syntax = await chat_requests(context, body.chat, param="input")
    except RequestError as error:
        raise renamed(error) from error
    requests = [_with_own_names(request) for request in requests]
    has_beams = body.chat.num_beams > 1
    written = ResponsesAnswer(context.engine.model_name, context.token_text, body)
    job = Job(
        requests=requests,
        answer=written,
        usage=Usage(),
        is_stream=body.request.stream,
        include_usage=True,
        syntax=syntax,
        is_text_only=True,
        recorder=recorder_of(context, body.chat, requests) if has_beams else None,
        end=b"",
        failure=written.failure,
    )
    return await answer(request, context, job)


def _with_own_names(request: GenerationRequest) -> GenerationRequest:
    """The request, whose grammar's errors name the field as this API does."""
    if request.grammar is None:
        return request
    param = NAME_OF.get(request.grammar.param, request.grammar.param)
    return dataclasses.replace(request, grammar=dataclasses.replace(request.grammar, param=param))


ROUTES = [("POST", "/v1/responses", responses), ("POST", "/responses", responses)]
