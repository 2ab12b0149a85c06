"""POST /v1/responses: OpenAI's newer API, without its storage."""

from __future__ import annotations

from sanic import HTTPResponse, Request

from rtpjax.errors import RequestError
from server.beam_search import recorder_of
from server.chat_job import chat_requests
from server.constrained import with_names
from server.generation import Job, answer
from server.output import Usage
from server.protocol.responses import ResponsesRequest, in_our_names, our_name, parse_responses
from server.responses_answer import ResponsesAnswer
from server.routes import Route, context_of, takes


@takes(ResponsesRequest)
async def responses(request: Request) -> HTTPResponse | None:
    """Answers a text, or a list of items."""
    context = context_of(request)
    context.check_available()
    body = parse_responses(request.body)
    try:
        _, requests, syntax = await chat_requests(context, body.chat, param="input")
    except RequestError as error:
        raise in_our_names(error) from error
    requests = with_names(requests, our_name)
    has_beams = body.chat.num_beams > 1
    written = ResponsesAnswer(context.engine.model_name, context.token_text, body)
    job = Job(
        requests=requests,
        answer=written,
        usage=Usage(),
        is_stream=body.request.stream,
        include_usage=True,
        syntax=syntax,
        recorder=recorder_of(context, body.chat, requests) if has_beams else None,
        end=b"",
        failure=written.failure,
    )
    return await answer(request, context, job)


ROUTES = [
    Route("POST", "/v1/responses", responses, "caller"),
    Route("POST", "/responses", responses, "caller"),
]
