"""A checked chat request -> the job that answers it, for every route that takes chat requests."""

from __future__ import annotations

from rtpjax.engine.request import GenerationRequest
from server.chat_answer import ChatAnswer
from server.context import ServerContext
from server.generation import Job, check_choices, make_requests
from server.output import Usage
from server.prompt import EncodedPrompt, check_lengths
from server.protocol.chat import ChatRequest


async def chat_job(context: ServerContext, body: ChatRequest) -> Job:
    """The job of a chat completion.

    Raises:
        RequestError: The template refuses the messages, or they do not fit the context.
    """
    _, requests = await chat_requests(context, body)
    return Job(
        requests=requests,
        answer=ChatAnswer(
            context.engine.model_name, context.token_text, with_usage=body.include_usage
        ),
        usage=Usage(choices_per_prompt=body.n),
        is_stream=body.stream,
        include_usage=body.include_usage,
    )


async def chat_requests(
    context: ServerContext, body: ChatRequest
) -> tuple[EncodedPrompt, list[GenerationRequest]]:
    """The prompt of a chat request, and one request for the engine per choice."""
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
    prompt = await encode_chat(context, body)
    check_lengths(len(prompt.token_ids), max_tokens, context.engine.max_model_len, param="messages")
    return prompt, make_requests(body, [prompt], params)


async def encode_chat(context: ServerContext, body: ChatRequest) -> EncodedPrompt:
    """The prompt of a chat request."""
    return await context.encoder.encode_chat(body.messages, body.template_kwargs)
