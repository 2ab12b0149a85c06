"""Body of POST /v1/responses, as a chat request: there is one way to a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from rtpjax.errors import RequestError
from server import limits
from server.protocol import responses_tools
from server.protocol.body import (
    StrictModel,
    check_fields,
    describe,
    field_error,
    load_object,
    shape_of,
)
from server.protocol.chat import ChatRequest
from server.protocol.field_classes import REASONING, RESPONSES, TEXT
from server.protocol.fields import REFUSE, FieldPolicy, cleaned
from server.protocol.renamed import renamed, renamed_param
from server.protocol.responses_input import input_messages
from server.protocol.responses_tools import NamedTools
from server.protocol.sampling import SamplingFields
from server.protocol.shapes import RESPONSES_OBJECTS
from server.protocol.values import Temperature, TokenCount, TopP

_LOGPROBS = "message.output_text.logprobs"

# All but the log-probabilities are of things that an answer of this server never has.
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
]

# Not OpenAI's, but there for the other APIs: they mean the same here.
_PASSED = SamplingFields.model_fields.keys() - {
    *("model", "n", "stream", "stream_options", "max_tokens", "temperature", "top_p"),
    *("prompt_logprobs", "return_token_ids", "aux_info"),
} | {
    "chat_template_kwargs",
    "enable_thinking",
    "thinking_budget",
    "thinking_token_budget",
    "include_reasoning",
    "user_template",
    "chat_template",
    "template_key",
}

_INSIDE = {
    **{name: shape_of(ChatRequest).honoured[name] for name in _PASSED},
    **RESPONSES_OBJECTS,
    "metadata": None,
}

# How the chat request's fields are called here, for its errors.
_NAMES = (
    (r"messages.*", "input"),
    (r"max_tokens", "max_output_tokens"),
    (r"response_format(\.json_schema)?", "text.format"),
    (r"reasoning_effort", "reasoning.effort"),
    (r"logprobs", "top_logprobs"),
)


class TextConfig(StrictModel):
    """`text`: what the answer must look like."""

    format: dict[str, Any] = Field(default_factory=lambda: {"type": "text"})
    others = TEXT


class ReasoningConfig(StrictModel):
    """`reasoning`: how much of it. There are no summaries, as the answer has all of it."""

    effort: Any = None
    others = REASONING


class StreamOptions(StrictModel):
    """Padding against traffic analysis can be asked for; the text is the same."""

    include_obfuscation: bool = False


class ResponsesRequest(StrictModel):
    """The fields of this API."""

    others = RESPONSES
    inside = _INSIDE

    model: str | None = None
    input: Any
    instructions: str | None = None
    max_output_tokens: TokenCount | None = None
    max_tool_calls: Annotated[int, Field(ge=0, le=limits.MAX_INT32)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS)] = 0
    include: list[Includable] = Field(default_factory=list)
    text: TextConfig = Field(default_factory=TextConfig)
    reasoning: ReasoningConfig | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    truncation: Literal["auto", "disabled"] = "disabled"
    stream: bool = False
    stream_options: StreamOptions | None = None


@dataclass(frozen=True, slots=True)
class ResponsesBody:
    """The request as it came, the chat that it means, and what the answer repeats of it."""

    request: ResponsesRequest
    chat: ChatRequest
    metadata: dict[str, Any]
    tools: NamedTools

    @property
    def tool_choice(self) -> Any:
        return self.request.tool_choice or "auto"

    def in_our_names(self, error: RequestError) -> RequestError:
        """An error of the chat request, with this API's name of the field."""
        return renamed(error, (*self.tools.places, *_NAMES))

    def our_name(self, param: str) -> str:
        """This API's name of a chat request's field."""
        return renamed_param(param, (*self.tools.places, *_NAMES))


def parse_responses(body: bytes, policy: FieldPolicy = REFUSE) -> ResponsesBody:
    """Checks a body.

    Raises:
        RequestError: A field is unknown, unsupported or wrong.
    """
    given = cleaned(load_object(body), shape_of(ResponsesRequest), policy)
    metadata = given.pop("metadata", {})
    if not isinstance(metadata, dict):
        raise field_error("metadata", f"expected an object, found {describe(metadata)}")
    passed = {name: given.pop(name) for name in _PASSED & given.keys()}
    request = check_fields(given, ResponsesRequest)
    tools = responses_tools.named_tools(request.tools or [])
    try:
        chat = check_fields(_chat_fields(request, tools, passed), ChatRequest)
    except RequestError as error:
        raise renamed(error, (*tools.places, *_NAMES)) from error
    return ResponsesBody(request, chat, metadata, tools)


def _chat_fields(
    request: ResponsesRequest, tools: NamedTools, passed: Mapping[str, Any]
) -> dict[str, Any]:
    choice, offered = responses_tools.chat_choice(request.tool_choice, tools.chat_tools)
    fields = {
        **passed,
        "messages": input_messages(request.instructions, request.input, tools),
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
    return fields


def _format(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("type") != "json_schema":
        return given
    schema = {name: value for name, value in given.items() if name != "type"}
    return {"type": "json_schema", "json_schema": schema}
