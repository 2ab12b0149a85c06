"""Body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PrivateAttr, model_validator

from server import limits
from server.function_calls import CallOptions
from server.protocol.body import StrictModel, field_error
from server.protocol.chat_messages import checked_messages
from server.protocol.sampling import SamplingFields, TokenCount
from server.protocol.tools import call_options


class TemplateKwargs(StrictModel):
    """Variables that a caller may set in the chat template; the others are the server's."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    preserve_thinking: bool | None = None
    date_string: Annotated[str, Field(max_length=64)] | None = None


class ChatRequest(SamplingFields):
    """What a caller of the chat API may send.

    `messages` are kept as plain dicts, in the form of `server.protocol.chat_messages`.
    """

    messages: Annotated[list[Any], Field(min_length=1, max_length=limits.MAX_MESSAGES)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS)] | None = None
    response_format: Any = None
    chat_template_kwargs: TemplateKwargs = Field(default_factory=TemplateKwargs)
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    functions: Any = None
    function_call: Any = None
    _calls: CallOptions = PrivateAttr(default_factory=CallOptions)

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise field_error("top_logprobs", "only allowed when logprobs is true")
        self.messages = checked_messages(self.messages)
        self._calls = call_options(
            tools=self.tools,
            tool_choice=self.tool_choice,
            functions=self.functions,
            function_call=self.function_call,
            is_parallel=self.parallel_tool_calls,
        )
        return self

    @property
    def calls(self) -> CallOptions:
        """The functions that the model may call, and how."""
        return self._calls

    @property
    def max_new_tokens(self) -> int | None:
        limits_given = [x for x in (self.max_tokens, self.max_completion_tokens) if x is not None]
        return min(limits_given, default=None)

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def template_kwargs(self) -> dict[str, Any]:
        return self.chat_template_kwargs.model_dump(exclude_none=True)
