"""Bodies of Anthropic's POST /v1/messages and /v1/messages/count_tokens, as chat requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rtpjax.errors import RequestError
from server import limits
from server.protocol import anthropic_tools
from server.protocol.anthropic_history import chat_messages
from server.protocol.body import StrictModel, check_fields, field_error, parse_body
from server.protocol.chat import ChatRequest
from server.protocol.field_classes import COUNT_TOKENS, MESSAGES, OUTPUT_CONFIG, THINKING
from server.protocol.fields import REFUSE, FieldPolicy
from server.protocol.renamed import renamed, renamed_param
from server.protocol.shapes import MESSAGES_OBJECTS
from server.protocol.values import StopString, Temperature, TokenCount, TopK, TopP

# How the chat request's fields are called here, for its errors.
_NAMES = (
    # Turns of one role are one message, so its number is another.
    (r"messages\[.*", "messages"),
    (r"stop\b", "stop_sequences"),
    (r"response_format\.json_schema", "output_config.format"),
    (r"response_format", "output_config.format"),
    (r"reasoning_effort", "output_config.effort"),
    (r"thinking_budget", "thinking.budget_tokens"),
    *anthropic_tools.NAMES,
)


class Thinking(StrictModel):
    """`thinking`: on or off where the template knows how, and for how many tokens at most."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: TokenCount | None = None
    display: Literal["summarized", "omitted"] | None = None
    others = THINKING

    @model_validator(mode="after")
    def _check(self) -> Thinking:
        if (self.type == "enabled") != (self.budget_tokens is not None):
            is_missing = self.type == "enabled"
            reason = "this field is required" if is_missing else f"not allowed if {self.type}"
            raise field_error("thinking.budget_tokens", reason)
        return self

    def chat_fields(self) -> dict[str, Any]:
        """What it means in a chat request."""
        if self.type == "disabled":
            return {"enable_thinking": False}
        return {
            "enable_thinking": True,
            "thinking_budget": self.budget_tokens,
            "hides_thinking": self.display == "omitted",
        }


class OutputFormat(StrictModel):
    """`output_config.format`: what the answer must look like."""

    type: Literal["json_schema"]
    json_schema: Any = Field(alias="schema")


class OutputConfig(StrictModel):
    """`output_config`: the answer's form, and the effort that goes into it."""

    effort: Any = None
    format: OutputFormat | None = None
    others = OUTPUT_CONFIG

    def chat_fields(self) -> dict[str, Any]:
        """What it means in a chat request."""
        fields: dict[str, Any] = {"reasoning_effort": self.effort}
        if self.format is not None:
            schema = {"name": "answer", "schema": self.format.json_schema, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        return fields


class CountRequest(StrictModel):
    """What a prompt is made of."""

    others = COUNT_TOKENS
    inside = MESSAGES_OBJECTS

    model: str | None = None
    messages: Annotated[list[Any], Field(min_length=1, max_length=limits.MAX_MESSAGES)]
    system: Any = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    tools: Any = None
    tool_choice: Any = None


class MessagesChat(ChatRequest):
    """The chat that a body means, with Anthropic's default.

    Attributes:
        hides_thinking: Blocks of thinking in the answer have no text.
    """

    temperature: Temperature = 1.0
    hides_thinking: bool = False


class MessagesRequest(CountRequest):
    """... and how it is answered."""

    others = MESSAGES

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
        names = {"max_tokens", "stream", "temperature", "top_k", "top_p"} & self.model_fields_set
        return {name: getattr(self, name) for name in names} | {"stop": self.stop_sequences}


def parse_messages(body: bytes, policy: FieldPolicy = REFUSE) -> MessagesChat:
    """The chat that a body means.

    Raises:
        RequestError: A field is unknown, unsupported or wrong.
    """
    request = parse_body(body, MessagesRequest, policy)
    return _chat(request, request.chat_fields())


def parse_count(body: bytes, policy: FieldPolicy = REFUSE) -> MessagesChat:
    """The chat whose prompt is to be counted; how it would be answered does not matter.

    Raises:
        RequestError: As parse_messages.
    """
    return _chat(parse_body(body, CountRequest, policy), {})


def _chat(request: CountRequest, fields: dict[str, Any]) -> MessagesChat:
    messages = chat_messages(request.system, request.messages)
    fields |= {"messages": messages, "tools": anthropic_tools.chat_tools(request.tools or [])}
    if request.tool_choice is not None:
        fields |= anthropic_tools.chat_choice(request.tool_choice)
    if request.thinking is not None:
        fields |= request.thinking.chat_fields()
    if request.output_config is not None:
        fields |= request.output_config.chat_fields()
    # Anthropic's API goes on with a last message of the assistant.
    if messages and messages[-1]["role"] == "assistant":
        if "tool_calls" in messages[-1]:
            reason = "it ends with calls; send their results in a message of the user"
            raise field_error(f"messages[{len(request.messages) - 1}].content", reason)
        fields["continue_final_message"] = True
    try:
        return check_fields(fields, MessagesChat)
    except RequestError as error:
        raise in_our_names(error) from error


def in_our_names(error: RequestError) -> RequestError:
    """An error of the chat request, with this API's name of the field."""
    return renamed(error, _NAMES)


def our_name(param: str) -> str:
    """This API's name of a chat request's field."""
    return renamed_param(param, _NAMES)
