"""Body of POST /v1/batch/chat/completions: `{"requests": [...]}`, each a chat request."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from rtpjax.errors import RequestError
from server import limits
from server.protocol.body import StrictModel, check_fields, field_error, parse_body
from server.protocol.chat import ChatRequest
from server.protocol.field_classes import EVERYWHERE
from server.protocol.fields import REFUSE, FieldPolicy


class BatchChatRequest(StrictModel):
    """The bodies are checked one by one, so that an error can say which one is wrong."""

    others = EVERYWHERE
    requests: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=limits.MAX_PROMPTS)]


def parse_batch(body: bytes, max_choices: int, policy: FieldPolicy = REFUSE) -> list[ChatRequest]:
    """The chat requests of a batch; together they may ask for as much as several prompts may.

    Args:
        body: The bytes.
        max_choices: As in ServerConfig.
        policy: For unknown fields.

    Raises:
        RequestError: With `requests[i].` before the name of the field.
    """
    requests = parse_body(body, BatchChatRequest, policy).requests
    chats = [_one(f"requests[{i}]", fields, policy) for i, fields in enumerate(requests)]
    most = max(limits.MAX_PROMPTS, max_choices)
    if sum(chat.n for chat in chats) > most:
        raise field_error("requests", f"more than {most} choices in one batch")
    return chats


def _one(where: str, fields: dict[str, Any], policy: FieldPolicy) -> ChatRequest:
    try:
        chat = check_fields(fields, ChatRequest, policy)
    except RequestError as error:
        param = f"{where}.{error.param}" if error.param else where
        raise RequestError(f"{where}.{error}", param=param, code=error.code) from error
    if chat.stream:
        raise field_error(f"{where}.stream", "a batch is answered in one piece")
    return chat
