"""POST /v1/responses: OpenAI's newer API, without its storage."""

from __future__ import annotations

from rtpjax.errors import RequestError
from server.beam_search import recorder_of
from server.chat_job import chat_requests, chat_usage
from server.constrained import with_names
from server.context import ModelContext
from server.generation import Job
from server.protocol.responses import ResponsesRequest, parse_responses
from server.responses_answer import ResponsesAnswer
from server.routes import Route, takes


@takes(ResponsesRequest, generates=True)
def responses(content: bytes, context: ModelContext) -> Job:
    """Answers a text, or a list of items."""
    body = parse_responses(content, context.fields)
    try:
        _, requests, syntax = chat_requests(context, body.chat, param="input")
    except RequestError as error:
        raise body.in_our_names(error) from error
    requests = with_names(requests, body.our_name)
    has_beams = body.chat.num_beams > 1
    written = ResponsesAnswer(context.model_names[0], context.token_text, body)
    return Job(
        requests=requests,
        answer=written,
        usage=chat_usage(context, syntax, 1),
        is_stream=body.request.stream,
        include_usage=True,
        syntax=syntax,
        recorder=recorder_of(context, body.chat, requests) if has_beams else None,
        end=b"",
        failure=written.failure,
    )


ROUTES = [
    Route("POST", "/v1/responses", responses, "caller"),
    Route("POST", "/responses", responses, "caller"),
]
