"""What a prompt looks like to the model; nothing is generated."""

from __future__ import annotations

from typing import Any

from server.chat_job import debug_info, encode_chat
from server.context import ModelContext
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
from server.routes import Reply, Route, takes


@takes(ChatRequest, generates=True)  # before that the length of the context is not known
def render(content: bytes, context: ModelContext) -> Reply:
    """The prompt of a chat request, as text and as token ids."""
    body = parse_body(content, ChatRequest, context.fields)
    params = sampling_of(body, context, max_tokens=body.max_new_tokens, logprobs=body.num_logprobs)
    prompt = encode_chat(context, body)
    [first, *_] = make_requests(body, [prompt], params)
    info = debug_info(context, prompt, first).as_json()
    return Reply({"prompt": prompt.text, "prompt_token_ids": list(prompt.token_ids)} | info)


@takes(EncodeRequest)
def encode(content: bytes, context: ModelContext) -> Reply:
    """RTP-LLM's: ids, the text of each token, and where it stands in the prompt."""
    body = parse_body(content, EncodeRequest, context.fields)
    [encoding] = context.engine.tokenizer.backend_tokenizer.encode_batch([body.prompt])
    answer: dict[str, Any] = {
        "token_ids": encoding.ids,
        "tokens": context.token_text.texts_of(encoding.ids),
        "error": "",
    }
    if body.return_offsets_mapping:
        answer["offset_mapping"] = encoding.offsets
    return Reply(answer)


@takes(TokenizeRequest, generates=True)
def tokenize(content: bytes, context: ModelContext) -> Reply:
    """vLLM's: the ids of a text or of a chat's prompt, and how many there are."""
    body = parse_tokenize(content, context.fields)
    token_ids = list(_encoded(context, body).token_ids)
    answer: dict[str, Any] = {
        "count": len(token_ids),
        "max_model_len": context.engine.max_model_len,
        "tokens": token_ids,
    }
    if body.return_token_strs:
        answer["token_strs"] = context.token_text.texts_of(token_ids)
    return Reply(answer)


@takes(DetokenizeRequest)
def detokenize(content: bytes, context: ModelContext) -> Reply:
    """The text of token ids."""
    body = parse_body(content, DetokenizeRequest, context.fields)
    _check_known(context, body.tokens)
    encoder, skips = context.encoder, body.skip_special_tokens
    return Reply({"prompt": encoder.decode(body.tokens, skip_special_tokens=skips)})


def _encoded(context: ModelContext, body: TokenizeRequest | TokenizeChatRequest) -> EncodedPrompt:
    if isinstance(body, TokenizeChatRequest):
        return encode_chat(context, body)
    text = body.prompt if body.prompt is not None else body.text
    assert text is not None
    return context.encoder.encode_completion(text, add_special_tokens=body.add_special_tokens)


def _check_known(context: ModelContext, token_ids: list[int]) -> None:
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
