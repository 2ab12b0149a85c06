"""What a prompt looks like to the model; nothing is generated."""

from __future__ import annotations

import asyncio
from typing import Any

from sanic import HTTPResponse, Request
from sanic.response import json

from server.chat_job import debug_info, encode_chat
from server.context import ServerContext
from server.generation import make_requests, sampling_of
from server.prompt import EncodedPrompt
from server.protocol.body import field_error, parse_body
from server.protocol.chat import ChatRequest
from server.protocol.tokens import (
    DetokenizeRequest,
    EncodeRequest,
    TokenizeChatRequest,
    TokenizeRequest,
    parse_tokenize,
)
from server.routes import Route, context_of, takes


@takes(ChatRequest)
async def render(request: Request) -> HTTPResponse:
    """The prompt of a chat request, as text and as token ids."""
    context = context_of(request)
    context.check_available()  # before that the length of the context is not known
    body = parse_body(request.body, ChatRequest)
    params = await sampling_of(
        body, context, max_tokens=body.max_new_tokens, logprobs=body.num_logprobs
    )
    prompt = await encode_chat(context, body)
    [first, *_] = make_requests(body, [prompt], params)
    info = debug_info(context, prompt, first).as_json()
    return json({"prompt": prompt.text, "prompt_token_ids": list(prompt.token_ids)} | info)


@takes(EncodeRequest)
async def encode(request: Request) -> HTTPResponse:
    """RTP-LLM's: ids, the text of each token, and where it stands in the prompt."""
    context = context_of(request)
    body = parse_body(request.body, EncodeRequest)
    backend = context.engine.tokenizer.backend_tokenizer
    encoding = await asyncio.to_thread(backend.encode, body.prompt)
    answer: dict[str, Any] = {
        "token_ids": encoding.ids,
        "tokens": [context.token_text.text_of(token_id) for token_id in encoding.ids],
        "error": "",
    }
    if body.return_offsets_mapping:
        answer["offset_mapping"] = [list(pair) for pair in encoding.offsets]
    return json(answer)


@takes(TokenizeRequest)
async def tokenize(request: Request) -> HTTPResponse:
    """vLLM's: the ids of a text or of a chat's prompt, and how many there are."""
    context = context_of(request)
    context.check_available()
    body = parse_tokenize(request.body)
    token_ids = list((await _encoded(context, body)).token_ids)
    answer: dict[str, Any] = {
        "count": len(token_ids),
        "max_model_len": context.engine.max_model_len,
        "tokens": token_ids,
    }
    if body.return_token_strs:
        answer["token_strs"] = [context.token_text.text_of(token_id) for token_id in token_ids]
    return json(answer)


@takes(DetokenizeRequest)
async def detokenize(request: Request) -> HTTPResponse:
    """The text of token ids."""
    context = context_of(request)
    body = parse_body(request.body, DetokenizeRequest)
    _check_known(context, body.tokens)
    text = await asyncio.to_thread(
        context.engine.tokenizer.backend_tokenizer.decode,
        body.tokens,
        skip_special_tokens=body.skip_special_tokens,
    )
    return json({"prompt": text})


async def _encoded(
    context: ServerContext, body: TokenizeRequest | TokenizeChatRequest
) -> EncodedPrompt:
    if isinstance(body, TokenizeChatRequest):
        return await encode_chat(context, body)
    text = body.prompt if body.prompt is not None else body.text
    assert text is not None
    return await context.encoder.encode_completion(text, add_special_tokens=body.add_special_tokens)


def _check_known(context: ServerContext, token_ids: list[int]) -> None:
    if token_ids and max(token_ids) >= context.encoder.vocab_size:
        reason = f"a token id is outside the vocabulary of {context.encoder.vocab_size}"
        raise field_error("tokens", reason)


ROUTES = [
    Route("POST", "/chat/render", render, "caller"),
    Route("POST", "/v1/chat/render", render, "caller"),
    Route("POST", "/tokenizer/encode", encode, "caller"),
    Route("POST", "/tokenize", tokenize, "caller"),
    Route("POST", "/detokenize", detokenize, "caller"),
]
