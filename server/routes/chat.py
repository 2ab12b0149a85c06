"""POST /v1/chat/completions. RTP-LLM's users call it without /v1."""

from __future__ import annotations

from sanic import HTTPResponse, Request

from server.chat_answer import ChatAnswer
from server.generation import Job, adapt_sampling, answer, check_choices, make_requests
from server.grammars import chat_grammar
from server.output import Usage
from server.prompt import check_lengths
from server.protocol.body import parse_body
from server.protocol.chat import ChatRequest
from server.routes import context_of


async def chat_completions(request: Request) -> HTTPResponse | None:
    """Answers a conversation."""
    context = context_of(request)
    context.check_available()
    body = parse_body(request.body, ChatRequest)
    check_choices(body, 1, context)
    max_tokens, encoder = body.max_new_tokens, context.encoder
    params = [
        body.sampling_params(
            choice,
            max_tokens=max_tokens,
            logprobs=body.num_logprobs,
            vocab_size=encoder.vocab_size,
        )
        for choice in range(body.n)
    ]
    calls = body.calls
    prompt = await encoder.encode_chat(body.messages, body.template_kwargs, calls)
    syntax = context.calls.syntax(calls, prompt.text)
    grammar = chat_grammar(body.response_format, calls, syntax)
    check_lengths(len(prompt.token_ids), max_tokens, context.engine.max_model_len, param="messages")
    sampling = adapt_sampling(params, syntax, context)
    job = Job(
        requests=make_requests(body, [prompt], sampling, grammar),
        answer=ChatAnswer(
            context.engine.model_name,
            context.token_text,
            with_usage=body.include_usage,
            dialect=calls.dialect,
        ),
        usage=Usage(choices_per_prompt=body.n),
        is_stream=body.stream,
        include_usage=body.include_usage,
        syntax=syntax,
    )
    return await answer(request, context, job)


ROUTES = [
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/chat/completions", chat_completions),
]
