"""Bodies of Anthropic's POST /v1/messages and /v1/messages/count_tokens, as chat requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from rtpjax.errors import RequestError
from server import limits
from server.protocol.body import StrictModel, check_fields, describe, field_error, load_object
from server.protocol.chat import ChatRequest
from server.protocol.values import StopString, Temperature, TokenCount, TopK, TopP

# They change nothing in the answer: prefixes are cached without being asked to be.
_HARMLESS = frozenset({"cache_control", "inference_geo", "metadata", "service_tier"})


class Thinking(StrictModel):
    """`thinking`: it can be switched off, where the template knows how."""

    type: Literal["disabled"]


class CountRequest(StrictModel):
    """What a prompt is made of."""

    model: str | None = None
    messages: Annotated[list[Any], Field(min_length=1, max_length=limits.MAX_MESSAGES)]
    system: Any = None
    thinking: Thinking | None = None


class MessagesRequest(CountRequest):
    """... and how it is answered."""

    max_tokens: TokenCount
    stop_sequences: Annotated[list[StopString], Field(max_length=limits.MAX_STOP_STRINGS)] = Field(
        default_factory=list
    )
    stream: bool = False
    temperature: Temperature = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0

    def chat_fields(self) -> dict[str, Any]:
        """The fields of a chat request besides those of the prompt."""
        names = ("max_tokens", "stream", "temperature", "top_k", "top_p")
        return {name: getattr(self, name) for name in names} | {"stop": self.stop_sequences}


def parse_messages(body: bytes) -> ChatRequest:
    """The chat that a body means.

    Raises:
        RequestError: A field is unknown, unsupported or wrong.
    """
    request = check_fields(_given(body), MessagesRequest)
    return _chat(request, request.chat_fields())


def parse_count(body: bytes) -> ChatRequest:
    """The chat whose prompt is to be counted; how it would be answered does not matter.

    Raises:
        RequestError: As parse_messages.
    """
    return _chat(check_fields(_given(body), CountRequest), {})


def _given(body: bytes) -> dict[str, Any]:
    fields = load_object(body).items()
    given = {k: v for k, v in fields if v is not None and k not in _HARMLESS}
    if given.get("tools"):
        # The way in is here (`_user`, `_assistant` know calls and their results); what is missing
        # is the way out, tool_use blocks in server.messages_answer.
        raise field_error("tools", "function calls are not supported in this API yet")
    given.pop("tools", None)
    return given


def _chat(request: CountRequest, fields: dict[str, Any]) -> ChatRequest:
    messages: list[dict[str, Any]] = []
    if request.system is not None:
        messages.append({"role": "system", "content": _text("system", request.system)})
    for index, message in enumerate(request.messages):
        messages += _message(f"messages[{index}]", message)
    if request.thinking is not None:
        fields["enable_thinking"] = False
    # Anthropic's API goes on with a last message of the assistant.
    fields["continue_final_message"] = messages[-1]["role"] == "assistant"
    try:
        return check_fields(fields | {"messages": messages}, ChatRequest)
    except RequestError as error:
        message = str(error).replace("stop[", "stop_sequences[")
        raise RequestError(message, param=error.param, code=error.code) from error


def _message(where: str, message: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(message, dict):
        raise field_error(where, f"expected an object, found {describe(message)}")
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        reason = f"expected user or assistant, found {describe(role)}"
        raise field_error(f"{where}.role", reason)
    for key in message.keys() - {"role", "content"}:
        raise field_error(f"{where}.{key}", "unknown field")
    where = f"{where}.content"
    if isinstance(content, str):
        yield {"role": role, "content": content}
        return
    blocks = _blocks(where, content)
    yield from (_user if role == "user" else _assistant)(where, blocks)


def _blocks(where: str, content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        expected = "expected a string or a list of blocks"
        raise field_error(where, f"{expected}, found {describe(content)}")
    for index, block in enumerate(content):
        if not isinstance(block, dict):
            expected = f"expected an object, found {describe(block)}"
            raise field_error(f"{where}[{index}]", expected)
    return content


def _user(where: str, blocks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    texts: list[str] = []
    for index, block in enumerate(blocks):
        at = f"{where}[{index}]"
        if block.get("type") == "tool_result":
            content = _text(f"{at}.content", block.get("content", ""))
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
        else:
            texts.append(_block_text(at, block))
    if texts or not blocks:
        yield {"role": "user", "content": "\n".join(texts)}


def _assistant(where: str, blocks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        kind = block.get("type")
        if kind == "tool_use":
            arguments = json.dumps(block.get("input", {}), ensure_ascii=False)
            function = {"name": block.get("name"), "arguments": arguments}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):  # of a former turn: left out
            texts.append(_block_text(f"{where}[{index}]", block))
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    yield message | {"tool_calls": calls} if calls else message


def _text(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    blocks = _blocks(where, content)
    return "\n".join(_block_text(f"{where}[{i}]", block) for i, block in enumerate(blocks))


def _block_text(where: str, block: dict[str, Any]) -> str:
    if block.get("type") != "text":
        found = describe(block.get("type"))
        raise field_error(f"{where}.type", f"only text is supported, found {found}")
    if not isinstance(block.get("text"), str):
        found = describe(block.get("text"))
        raise field_error(f"{where}.text", f"expected a string, found {found}")
    for key in block.keys() - {"type", "text", "cache_control", "citations"}:
        raise field_error(f"{where}.{key}", "unknown field")
    return block["text"]
