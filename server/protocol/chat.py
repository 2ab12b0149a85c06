"""Body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from server import limits
from server.function_calls import CallOptions
from server.protocol.body import StrictModel, describe, field_error, field_path
from server.protocol.chat_messages import checked_messages
from server.protocol.field_classes import CHAT, CHAT_THINKING, OPENROUTER_REASONING
from server.protocol.form import FormFields
from server.protocol.shapes import CHAT_OBJECTS
from server.protocol.tools import call_options
from server.protocol.values import Int32, TokenCount

# From least to most; OpenAI's and Anthropic's.
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TemplateKwargs(StrictModel):
    """Variables that a caller may set in the chat template; the others are the server's."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    preserve_thinking: bool | None = None
    date_string: Annotated[str, Field(max_length=64)] | None = None


class Reasoning(StrictModel):
    """`reasoning`: OpenRouter's name for effort and budget."""

    effort: Effort | None = None
    max_tokens: Int32 | None = None
    enabled: bool | None = None
    exclude: bool = False
    others = OPENROUTER_REASONING


class Thinking(StrictModel):
    """`thinking`: how DeepSeek's, Zhipu's and Moonshot's APIs switch reasoning on and off."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: TokenCount | None = None
    others = CHAT_THINKING


class UsageOptions(StrictModel):
    """`usage`: OpenRouter's name for `stream_options.include_usage`."""

    include: bool = False


class ChatRequest(FormFields):
    """What a caller of the chat API may send.

    `messages` are kept as plain dicts, in the form of `server.protocol.chat_messages`.
    """

    others = CHAT
    inside = CHAT_OBJECTS

    messages: Annotated[list[Any], Field(min_length=1, max_length=limits.MAX_MESSAGES)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: TemplateKwargs = Field(default_factory=TemplateKwargs)
    enable_thinking: bool | None = None
    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    thinking: Thinking | None = None
    include_reasoning: bool = True
    usage: UsageOptions | None = None
    json_format: bool = False
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    user_template: Annotated[str, Field(max_length=limits.MAX_TEMPLATE_CHARS)] | None = None
    chat_template: Annotated[str, Field(max_length=limits.MAX_TEMPLATE_CHARS)] | None = None
    template_key: Annotated[str, Field(max_length=limits.MAX_TEMPLATE_CHARS)] | None = None
    debug_info: bool = False
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    functions: Any = None
    function_call: Any = None
    _calls: CallOptions = PrivateAttr(default_factory=CallOptions)

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "only allowed when logprobs is true")
        self._take_other_names()
        if self.enable_thinking and self.reasoning_effort == "none":
            raise field_error("reasoning_effort", "none, but enable_thinking is true")
        self._check_one_template()
        is_partial = partial_of(self.messages)
        self._calls = call_options(
            tools=self.tools,
            tool_choice=self.tool_choice,
            functions=self.functions,
            function_call=self.function_call,
            is_parallel=self._said_parallel,
        )
        names = [function.name for function in self._calls.functions]
        self.messages = checked_messages(self.messages, names)
        if is_partial and self.continue_final_message is False:
            raise field_error("continue_final_message", "false, but the last message is partial")
        if is_partial:
            self.continue_final_message = True
        if self.continue_final_message:
            self._check_continued()
        return self

    def _check_one_template(self) -> None:
        names = ("user_template", "chat_template", "template_key")
        given = [name for name in names if getattr(self, name)]
        if len(given) > 1:
            raise field_error(given[1], f"not allowed together with {given[0]}")

    def _take_other_names(self) -> None:
        """Settles what other APIs say in `reasoning`, `thinking` and `json_format`."""
        if self.reasoning is not None:
            self.reasoning_effort = self.reasoning_effort or self.reasoning.effort
            self._take_thinking(self.reasoning.enabled, self.reasoning.max_tokens)
        if self.thinking is not None:
            self._take_thinking(self.thinking.type != "disabled", self.thinking.budget_tokens)
        if self.json_format and self.response_format is None:
            self.response_format = {"type": "json_object"}

    def _take_thinking(self, is_enabled: bool | None, budget: int | None) -> None:
        if self.enable_thinking is None:
            self.enable_thinking = is_enabled
        if self.thinking_budget is None:
            self.thinking_budget = budget

    def _check_continued(self) -> None:
        if self.messages[-1]["role"] != "assistant":
            reason = "only a last message of role assistant can be continued"
            raise field_error("continue_final_message", reason)
        if self.add_generation_prompt:
            reason = "not allowed together with continuing the last message"
            raise field_error("add_generation_prompt", reason)

    @property
    def _said_parallel(self) -> bool | None:
        """What the caller says of parallel calls, if anything."""
        is_said = "parallel_tool_calls" in self.model_fields_set
        return self.parallel_tool_calls if is_said else None

    @property
    def calls(self) -> CallOptions:
        """The functions that the model may call, and how."""
        return self._calls

    @property
    def include_usage(self) -> bool:
        return super().include_usage or (self.usage is not None and self.usage.include)

    @property
    def leaves_out_reasoning(self) -> bool:
        """Whether the answer shall have none of it; the model reasons all the same."""
        is_excluded = self.reasoning is not None and self.reasoning.exclude
        return is_excluded or not self.include_reasoning

    @property
    def max_new_tokens(self) -> int | None:
        limits_given = [x for x in (self.max_tokens, self.max_completion_tokens) if x is not None]
        return min(limits_given, default=None)

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Variables of the template besides the effort, and how the prompt ends."""
        variables = self.chat_template_kwargs.model_dump(exclude_none=True)
        if self.enable_thinking is not None:
            variables["enable_thinking"] = self.enable_thinking
        if self.continue_final_message:
            variables["continue_final_message"] = True
        if self.add_generation_prompt is not None:
            variables["add_generation_prompt"] = self.add_generation_prompt
        return variables


def partial_of(messages: list[Any]) -> bool:
    """Takes `partial` off the messages; whether the last one is to be continued.

    Raises:
        RequestError: It is no boolean, or not on a last message of the assistant.
    """
    is_partial = False
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("partial") is None:
            continue
        where = field_path(("messages", index, "partial"))
        is_partial = message["partial"]
        messages[index] = {key: value for key, value in message.items() if key != "partial"}
        if not isinstance(is_partial, bool):
            raise field_error(where, f"expected true or false, found {describe(is_partial)}")
        if is_partial and (index < len(messages) - 1 or message.get("role") != "assistant"):
            raise field_error(where, "only a last message of role assistant can be continued")
    return is_partial
