"""Body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from server import limits
from server.protocol.body import StrictModel, describe, field_error, field_path
from server.protocol.sampling import SamplingFields
from server.protocol.values import TokenCount

# OpenAI renamed `system`; templates know the old name only.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_CALL_ROLES = frozenset({"tool", "function", "observation"})

# Clients append the assistant message they got, with all its keys. These do not reach the prompt.
_IGNORED_IN_MESSAGE = frozenset({"refusal", "annotations"})
_TEXT_IN_MESSAGE = ("name", "reasoning_content", "reasoning")


class TemplateKwargs(StrictModel):
    """Variables that a caller may set in the chat template; the others are the server's."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    preserve_thinking: bool | None = None
    date_string: Annotated[str, Field(max_length=64)] | None = None


class ChatRequest(SamplingFields):
    """What a caller of the chat API may send.

    `messages` are kept as plain dicts with role and text, the form that chat templates take.
    """

    messages: Annotated[list[Any], Field(min_length=1, max_length=limits.MAX_MESSAGES)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: TemplateKwargs = Field(default_factory=TemplateKwargs)
    enable_thinking: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    user_template: Annotated[str, Field(max_length=limits.MAX_TEMPLATE_CHARS)] | None = None
    debug_info: bool = False

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise field_error("top_logprobs", "only allowed when logprobs is true")
        is_partial = partial_of(self.messages)
        self.messages = [_message(index, value) for index, value in enumerate(self.messages)]
        if is_partial and self.continue_final_message is False:
            raise field_error("continue_final_message", "false, but the last message is partial")
        if is_partial:
            self.continue_final_message = True
        if self.continue_final_message:
            self._check_continued()
        return self

    def _check_continued(self) -> None:
        if self.messages[-1]["role"] != "assistant":
            reason = "only a last message of role assistant can be continued"
            raise field_error("continue_final_message", reason)
        if self.add_generation_prompt:
            reason = "not allowed together with continuing the last message"
            raise field_error("add_generation_prompt", reason)

    @property
    def max_new_tokens(self) -> int | None:
        limits_given = [x for x in (self.max_tokens, self.max_completion_tokens) if x is not None]
        return min(limits_given, default=None)

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Variables of the template, and how the prompt ends."""
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


def _message(index: int, value: Any) -> dict[str, str]:
    where = field_path(("messages", index))
    if not isinstance(value, dict):
        raise field_error(f"{where}", f"expected an object, found {describe(value)}")
    given = {key: field for key, field in value.items() if field is not None}
    message = {"role": _role(where, given), "content": _content(where, given)}
    for key in given.keys() - {"role", "content"} - _IGNORED_IN_MESSAGE:
        _check_extra(where, key, given[key])
    for key in _TEXT_IN_MESSAGE:
        if given.get(key):
            message["reasoning_content" if key == "reasoning" else key] = given[key]
    return message


def _role(where: str, given: dict[str, Any]) -> str:
    if "role" not in given:
        raise field_error(f"{where}.role", "this field is required")
    role = given["role"]
    if isinstance(role, str) and role in _CALL_ROLES:
        raise field_error(
            f"{where}.role", f"'{role}' refused, function calls are not supported yet"
        )
    if not isinstance(role, str) or role not in _ROLES:
        expected = ", ".join(_ROLES)
        raise field_error(f"{where}.role", f"expected one of {expected}, found {describe(role)}")
    return _ROLES[role]


def _content(where: str, given: dict[str, Any]) -> str:
    if given.get("tool_calls") or given.get("function_call"):
        raise field_error(f"{where}", "function calls are not supported yet")
    if "content" not in given:
        raise field_error(f"{where}.content", "this field is required")
    content = given["content"]
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        expected = "expected a string or a list of text parts"
        raise field_error(f"{where}.content", f"{expected}, found {describe(content)}")
    parts = [_text_part(f"{where}.content[{i}]", part) for i, part in enumerate(content)]
    return "\n".join(parts)


def _text_part(where: str, part: Any) -> str:
    if not isinstance(part, dict):
        raise field_error(f"{where}", f"expected an object, found {describe(part)}")
    if part.get("type") != "text":
        found = describe(part.get("type"))
        raise field_error(f"{where}.type", f"only 'text' parts are supported, found {found}")
    if not isinstance(part.get("text"), str):
        raise field_error(f"{where}.text", f"expected a string, found {describe(part.get('text'))}")
    for key in part.keys() - {"type", "text"}:
        raise field_error(f"{where}.{key}", "unknown field")
    return part["text"]


def _check_extra(where: str, key: str, value: Any) -> None:
    if key in _TEXT_IN_MESSAGE:
        if not isinstance(value, str):
            raise field_error(f"{where}.{key}", f"expected a string, found {describe(value)}")
    elif key == "audio":
        raise field_error(f"{where}.audio", "only text is supported")
    elif key not in ("tool_calls", "function_call"):  # empty: the others were refused before
        raise field_error(f"{where}.{key}", "unknown field")
