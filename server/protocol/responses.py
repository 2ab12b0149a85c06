"""Body of POST /v1/responses, as a chat request: there is one way to a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from rtpjax.errors import RequestError
from server import limits
from server.protocol import responses_tools
from server.protocol.body import StrictModel, check_fields, describe, field_error, load_object
from server.protocol.chat import ChatRequest
from server.protocol.renamed import renamed, renamed_param
from server.protocol.responses_input import input_messages
from server.protocol.sampling import SamplingFields
from server.protocol.values import Temperature, TokenCount, TopP

_LOGPROBS = "message.output_text.logprobs"

# Not OpenAI's, but there for the other APIs: they mean the same here.
_PASSED = SamplingFields.model_fields.keys() - {
    *("model", "n", "stream", "stream_options", "max_tokens", "temperature", "top_p"),
    *("prompt_logprobs", "return_token_ids", "aux_info"),
} | {"chat_template_kwargs", "enable_thinking", "thinking_budget"}

# How the chat request's fields are called here, for its errors.
_NAMES = (
    (r"messages.*", "input"),
    (r"max_tokens", "max_output_tokens"),
    (r"response_format(\.json_schema)?", "text.format"),
    (r"reasoning_effort", "reasoning.effort"),
    (r"logprobs", "top_logprobs"),
    *responses_tools.NAMES,
)


class TextConfig(StrictModel):
    """`text`: what the answer must look like."""

    format: dict[str, Any] = Field(default_factory=lambda: {"type": "text"})
    verbosity: Literal["medium"] | None = None


class ReasoningConfig(StrictModel):
    """`reasoning`: how much of it. There are no summaries, as the answer has all of it."""

    effort: Any = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


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
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool = True
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
    tools: list[dict[str, Any]]

    @property
    def tool_choice(self) -> Any:
        return self.request.tool_choice or "auto"


def parse_responses(body: bytes) -> ResponsesBody:
    """Checks a body.

    Raises:
        RequestError: A field is unknown, unsupported or wrong.
    """
    given = {name: value for name, value in load_object(body).items() if value is not None}
    metadata = given.get("metadata", {})
    if not isinstance(metadata, dict):
        raise field_error("metadata", f"expected an object, found {describe(metadata)}")
    for name in ("previous_response_id", "conversation", "prompt"):
        if name in given:
            raise field_error(name, "nothing is stored here; send all items as input")
    passed = {name: given.pop(name) for name in _PASSED & given.keys()}
    request = check_fields(given, ResponsesRequest)
    tools = responses_tools.chat_tools(request.tools or [])
    chat = _chat(request, tools, passed)
    return ResponsesBody(request, chat, metadata, responses_tools.shown_tools(tools))


def _chat(
    request: ResponsesRequest, tools: list[dict[str, Any]], passed: dict[str, Any]
) -> ChatRequest:
    choice, offered = responses_tools.chat_choice(request.tool_choice, tools)
    fields = passed | {
        "messages": input_messages(request.instructions, request.input),
        "stream": request.stream,
        "tools": offered,
        "tool_choice": choice,
    }
    if "parallel_tool_calls" in request.model_fields_set:
        fields["parallel_tool_calls"] = request.parallel_tool_calls
    if request.reasoning is not None:
        fields["reasoning_effort"] = request.reasoning.effort
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
        raise in_our_names(error) from error


def in_our_names(error: RequestError) -> RequestError:
    """An error of the chat request, with this API's name of the field."""
    return renamed(error, _NAMES)


def our_name(param: str) -> str:
    """This API's name of a chat request's field."""
    return renamed_param(param, _NAMES)


def _format(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("type") != "json_schema":
        return given
    schema = {name: value for name, value in given.items() if name != "type"}
    return {"type": "json_schema", "json_schema": schema}
