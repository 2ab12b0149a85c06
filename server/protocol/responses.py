"""Body of POST /v1/responses, as a chat request: there is one way to a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from rtpjax.errors import RequestError
from server import limits
from server.protocol.body import StrictModel, check_fields, describe, field_error, load_object
from server.protocol.chat import ChatRequest
from server.protocol.sampling import SamplingFields
from server.protocol.values import Temperature, TokenCount, TopP

_LOGPROBS = "message.output_text.logprobs"

# Not OpenAI's, but there for the other APIs: they mean the same here.
_PASSED = SamplingFields.model_fields.keys() - {
    *("model", "n", "stream", "stream_options", "max_tokens", "temperature", "top_p"),
    *("prompt_logprobs", "return_token_ids", "aux_info"),
} | {"chat_template_kwargs", "enable_thinking"}

# How the chat request's fields are called here, for its errors.
NAME_OF = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}


class TextConfig(StrictModel):
    """`text`: what the answer must look like."""

    format: dict[str, Any] = Field(default_factory=lambda: {"type": "text"})
    verbosity: Literal["medium"] | None = None


class ReasoningConfig(StrictModel):
    """`reasoning`: only what changes nothing, until reasoning is told apart from the answer."""

    effort: Literal["none"] | None = None
    summary: Literal["auto"] | None = None


class StreamOptions(StrictModel):
    """Padding against traffic analysis can be asked for; the text is the same."""

    include_obfuscation: bool = False


class ResponsesRequest(StrictModel):
    """The fields of this API."""

    model: str | None = None
    input: Any
    instructions: str | None = None
    max_output_tokens: TokenCount | None = None
    max_tool_calls: Annotated[int, Field(ge=0, le=limits.MAX_INT32)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS)] = 0
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] = Field(
        default_factory=list
    )
    text: TextConfig = Field(default_factory=TextConfig)
    reasoning: ReasoningConfig | None = None
    truncation: Literal["disabled"] = "disabled"
    background: Literal[False] = False
    stream: bool = False
    stream_options: StreamOptions | None = None


@dataclass(frozen=True, slots=True)
class ResponsesBody:
    """The request as it came, the chat that it means, and what the answer repeats of it."""

    request: ResponsesRequest
    chat: ChatRequest
    metadata: dict[str, Any]


def parse_responses(body: bytes) -> ResponsesBody:
    """Checks a body.

    Raises:
        RequestError: A field is unknown, unsupported or wrong.
    """
    given = {name: value for name, value in load_object(body).items() if value is not None}
    metadata = given.get("metadata", {})
    if not isinstance(metadata, dict):
        raise field_error("metadata", f"expected an object, found {describe(metadata)}")
    if given.get("tools"):
        # The way in is here (`_item` knows calls and their results); what is missing is the way
        # out, function_call items in server.responses_answer.
        raise field_error("tools", "function calls are not supported in this API yet")
    for name in ("previous_response_id", "conversation", "prompt"):
        if name in given:
            raise field_error(name, "nothing is stored here; send all items as input")
    passed = {name: given.pop(name) for name in _PASSED & given.keys()}
    request = check_fields(given, ResponsesRequest)
    return ResponsesBody(request, _chat(request, passed), metadata)


def _chat(request: ResponsesRequest, passed: dict[str, Any]) -> ChatRequest:
    fields = passed | {"messages": _messages(request), "stream": request.stream}
    for name in ("temperature", "top_p"):
        if getattr(request, name) is not None:
            fields[name] = getattr(request, name)
    if request.max_output_tokens is not None:
        fields["max_tokens"] = request.max_output_tokens
    if request.text.format != {"type": "text"}:
        fields["response_format"] = _format(request.text.format)
    if _LOGPROBS in request.include or request.top_logprobs:
        fields |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    try:
        return check_fields(fields, ChatRequest)
    except RequestError as error:
        raise renamed(error) from error


def renamed(error: RequestError) -> RequestError:
    """An error of the chat request, with this API's name of the field."""
    for name, ours in NAME_OF.items():
        if error.param is not None and error.param.startswith(name):
            param = ours + error.param.removeprefix(name)
            message = str(error).replace(error.param, param, 1)
            return RequestError(message, param=param, code=error.code)
    return error


def _format(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("type") != "json_schema":
        return given
    schema = {name: value for name, value in given.items() if name != "type"}
    return {"type": "json_schema", "json_schema": schema}


def _messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions is not None:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    if not isinstance(request.input, list) or len(request.input) > limits.MAX_MESSAGES:
        expected = f"expected a string or at most {limits.MAX_MESSAGES} items"
        raise field_error("input", f"{expected}, found {describe(request.input)}")
    for index, item in enumerate(request.input):
        if not isinstance(item, dict):
            raise field_error(f"input[{index}]", f"expected an object, found {describe(item)}")
        message = _item(f"input[{index}]", item)
        if message is not None:
            messages.append(message)
    if not messages:
        raise field_error("input", "expected at least one message")
    return messages


def _item(where: str, item: dict[str, Any]) -> dict[str, Any] | None:
    """One item as a message; None for an item that says nothing to this model."""
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            raise field_error(f"{where}.role", f"unknown role, found {describe(role)}")
        return {"role": role, "content": _content(f"{where}.content", item.get("content"))}
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        content = _content(f"{where}.output", item.get("output"))
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
    if kind == "reasoning":
        return None  # of a former turn: templates leave it out
    raise field_error(f"{where}.type", f"not supported, found {describe(kind)}")


def _content(where: str, content: Any) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        expected = "expected a string or a list of text parts"
        raise field_error(where, f"{expected}, found {describe(content)}")
    return [_part(f"{where}[{index}]", part) for index, part in enumerate(content)]


def _part(where: str, part: Any) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise field_error(where, f"expected an object, found {describe(part)}")
    kind = part.get("type")
    if kind not in ("input_text", "output_text", "text", "refusal"):
        raise field_error(f"{where}.type", f"only text is supported, found {describe(kind)}")
    text = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        raise field_error(f"{where}.text", f"expected a string, found {describe(text)}")
    return {"type": "text", "text": text}
