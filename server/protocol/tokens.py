"""Bodies of the routes that only encode and decode."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from server import limits
from server.protocol.body import StrictModel, check_fields, field_error, load_object
from server.protocol.chat import ChatRequest
from server.protocol.field_classes import EVERYWHERE, TOKENIZE
from server.protocol.fields import REFUSE, FieldPolicy
from server.protocol.values import TokenId


class EncodeRequest(StrictModel):
    """POST /tokenizer/encode, RTP-LLM's."""

    others = EVERYWHERE
    prompt: str
    return_offsets_mapping: bool = False


class TokenizeRequest(StrictModel):
    """POST /tokenize with a text: vLLM's name for it, or SGLang's."""

    others = TOKENIZE
    prompt: str | None = None
    text: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _has_one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.text is None):
            raise field_error("prompt", "expected one of prompt, text and messages")
        return self


class TokenizeChatRequest(ChatRequest):
    """POST /tokenize with messages. The template writes the special tokens, whatever is asked."""

    add_special_tokens: bool = False
    return_token_strs: bool = False


class DetokenizeRequest(StrictModel):
    """POST /detokenize."""

    others = EVERYWHERE
    tokens: Annotated[list[TokenId], Field(max_length=limits.MAX_DECODED_TOKENS)]
    skip_special_tokens: bool = False


def parse_tokenize(
    body: bytes, policy: FieldPolicy = REFUSE
) -> TokenizeRequest | TokenizeChatRequest:
    """The body of POST /tokenize, whichever it is.

    Raises:
        RequestError: It is neither.
    """
    fields = load_object(body)
    if fields.get("messages") is None:
        return check_fields(fields, TokenizeRequest, policy)
    return check_fields(fields, TokenizeChatRequest, policy)
