"""What a model's template and tokenizer make of calls and reasoning; decided once at start-up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property, partial
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer

from rtpjax.engine.request import ReasoningLimit
from rtpjax.errors import RequestError
from server.answer_parser import AnswerSyntax
from server.chat_template import ChatTemplate
from server.control_tokens import ControlTokens, control_tokens
from server.function_calls import CallOptions, Function, hermes
from server.function_calls.history import template_messages, with_broken_calls_as_text
from server.function_calls.react import react_turns
from server.grammars.calls import CallStyle
from server.parsing.tagged_reasoning import TaggedReasoning
from server.reasoning_parsers import (
    NONE,
    check_reasoning_format,
    find_reasoning_format,
    reasoning_formats,
)
from server.tool_parsers import (
    DEFAULT,
    check_tool_format,
    find_tool_format,
    tool_formats,
)

# As RTP-LLM and config.json call Qwen 1, 1.5 and 2. (2.5 has the same type and knows tools.)
_REACT_MODELS = frozenset({
    "qwen", "qwen_7b", "qwen_13b", "qwen_1b8", "qwen_2", "qwen_2_moe", "qwen2", "qwen2_moe",
})  # fmt: skip
_REACT = "react"
# Levels of effort that not all templates know.
_NEAREST = {"minimal": "low", "xhigh": "high", "max": "high"}
_DEFAULT_SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


class CallSupport:
    """Renders conversations with calls, and says how their answers are to be read.

    Attributes:
        tool_format, reasoning_format: Names of the formats that the model writes.
    """

    def __init__(
        self,
        template: ChatTemplate,
        special_tokens: frozenset[str] = frozenset(),
        *,
        model_type: str = "",
        tool_call_parser: str | None = None,
        reasoning_parser: str | None = None,
        literals: Sequence[str] = (),
    ):
        """Args:
            template: The chat template.
            special_tokens: The tokenizer's.
            model_type: As in config.json.
            tool_call_parser, reasoning_parser: Names of formats; None goes by template and type.
            literals: Texts of other templates whose control tokens are control tokens here, too.

        Raises:
            ConfigError: There is no parser of that name.
        """
        self._make = partial(
            CallSupport,
            special_tokens=special_tokens,
            model_type=model_type,
            tool_call_parser=tool_call_parser,
            reasoning_parser=reasoning_parser,
        )
        source = template.source
        self._template = template
        self._own_literals = tuple(literals)
        self._control_tokens: ControlTokens | None = None
        self._special_tokens = special_tokens
        self._is_react_model = model_type in _REACT_MODELS and not template.knows_tools
        found = find_tool_format(source, model_type) if template.knows_tools else DEFAULT
        self.tool_format = check_tool_format(tool_call_parser or found)
        self._is_chosen = tool_call_parser is not None
        self.reasoning_format = check_reasoning_format(
            reasoning_parser or find_reasoning_format(source, model_type)
        )

    def with_template(self, template: ChatTemplate) -> CallSupport:
        """The same model with another template."""
        return self._make(template, literals=(*self._own_literals, *self._template.literals))

    @property
    def source(self) -> str:
        """The template's text."""
        return self._template.source

    @cached_property
    def literals(self) -> tuple[str, ...]:
        """The texts that are written into prompts besides what callers wrote."""
        ways = tool_formats()[self.tool_format].written
        written = [text for way in ways for text in (way.begin, way.call, way.end, way.section_end)]
        texts = (*self._own_literals, *self._template.literals, *written, *hermes.TEXTS)
        return tuple(dict.fromkeys((*texts, *_all_marks())))

    @cached_property
    def assistant_marks(self) -> frozenset[str]:
        """Marks of reasoning and calls, which are legitimate in what the assistant said.

        Of special tokens only tags around the model's own reasoning are: others end turns.
        """
        tools = tool_formats()
        formats = (tools[self.tool_format], tools[DEFAULT])
        calls = {mark for f in formats for way in f.written for mark in f.marks_of(way)}
        tags = {
            name: found.grammar.marks
            for name, found in reasoning_formats().items()
            if isinstance(found.grammar, TaggedReasoning)
        }
        marks = calls.union(*tags.values()) - self._special_tokens
        return frozenset(marks.union(tags.get(self.reasoning_format, ())))

    def control_tokens(self, backend: Tokenizer) -> ControlTokens:
        """The tokens that a caller's text must not become, of the model's tokenizer."""
        if self._control_tokens is None:
            self._control_tokens = control_tokens(backend, self.literals)
        return self._control_tokens

    def _format_of(self, calls: CallOptions) -> str:
        is_react = self._is_react_model and calls.dialect == "functions" and not self._is_chosen
        return _REACT if is_react else self.tool_format

    def render(
        self, messages: list[dict[str, Any]], calls: CallOptions, variables: dict[str, Any]
    ) -> str:
        """The prompt's text.

        Raises:
            RequestError: The template refuses the messages, or their roles are out of order.
        """
        functions = calls.offered
        if any(map(_is_empty, messages)) and not self._takes_empty_turns:
            messages = [_with_a_blank(message) for message in messages]
        if any(map(_is_system, messages[1:])) and not self._takes_system_later:
            messages = [*messages[:1], *map(_as_user, messages[1:])]
        if any(map(_are_of_user, messages, messages[1:])) and not self._takes_users_in_a_row:
            messages = _with_joined_users(messages)
        if functions and self._format_of(calls) == _REACT:
            is_open = bool(variables.get("continue_final_message"))
            turns, open_turn = react_turns(messages, functions, is_last_open=is_open)
            if self._template.is_fallback and turns[0]["role"] != "system":
                turns.insert(0, _DEFAULT_SYSTEM)
            if open_turn:
                opens = {"continue_final_message": False, "add_generation_prompt": True}
                variables = variables | opens
            return self._template.render(turns, is_rewritten=True, **variables) + open_turn
        if self._template.knows_tools:
            tools = [function.as_tool for function in functions] or None
            if "tool_calls" not in self._template.source:
                messages = [hermes.with_calls_as_text(message) for message in messages]
            elif not self._takes_arguments_as_text:
                messages = [with_broken_calls_as_text(m, self._call_text) for m in messages]
            converted = template_messages(messages, self._template.source)
            return self._template.render(converted, tools=tools, **variables)
        plain = hermes.plain_messages(messages)
        if functions:
            text = hermes.system_text(functions, teaches_format=self.tool_format == DEFAULT)
            plain = hermes.with_text(plain, text, has_system=self._has_system)
        return self._template.render(plain, is_rewritten=True, **variables)

    @property
    def is_format_unknown(self) -> bool:
        """Whether the template has calls in a form that no parser was recognised for."""
        if self._is_chosen or self.tool_format != DEFAULT or not self._template.knows_tools:
            return False
        marks = tool_formats()[DEFAULT].in_template
        return not all(mark in self._template.source for mark in marks)

    @cached_property
    def _has_system(self) -> bool:
        """Whether the template takes messages of role system."""
        return self._takes([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])

    @cached_property
    def _takes_empty_turns(self) -> bool:
        """Whether the assistant may have said nothing; Ministral's template wants a text."""
        user, empty = {"role": "user", "content": "a"}, {"role": "assistant", "content": ""}
        return self._takes([user, empty, user]) or not self._takes(
            [user, _with_a_blank(empty), user]
        )

    @cached_property
    def _takes_system_later(self) -> bool:
        """Whether the system may speak after the user; Qwen 3.5's template refuses that."""
        user, system = {"role": "user", "content": "a"}, {"role": "system", "content": "b"}
        answer = {"role": "assistant", "content": "c"}
        return self._takes([system, user, answer, system, user]) or not self._takes(
            [system, user, answer, user]
        )

    @cached_property
    def _takes_users_in_a_row(self) -> bool:
        """Whether the user may speak twice; Gemma's and Mistral's templates want turns in turn."""
        one = {"role": "user", "content": "a"}
        return self._takes([one, one]) or not self._takes([one])

    @cached_property
    def _takes_arguments_as_text(self) -> bool:
        """Whether the template writes a call's arguments that are no mapping, and so can be none of
        those that it goes through one by one."""
        text = "arguments as text"
        call = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": text}}
        probe = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call00000", "name": "f", "content": "b"},
        ]
        tools = [Function({"name": "f", "description": "f"}).as_tool]
        try:
            messages = template_messages(probe, self._template.source)
            return text in self._template.render(messages, tools=tools)
        except RequestError:
            return False

    def _takes(self, messages: list[dict[str, Any]]) -> bool:
        try:
            self._template.render(messages)
        except RequestError:
            return False
        return True

    def _call_text(self, name: str, arguments: str) -> str:
        """A call as the model writes it, with arguments as they are."""
        written = tool_formats()[self.tool_format].written_by(self._template.source)
        lines = "\n" if written.arguments is not None else ""
        call = written.begin + written.call.replace("{name}", name).replace("{index}", "0")
        return f"{call}{arguments}{lines}{written.end}{written.section_end}"

    def syntax(self, calls: CallOptions, prompt: str) -> AnswerSyntax | None:
        """How answers to a prompt are read; None where all of them are plain text.

        Raises:
            RequestError: A call must be made, and a schema cannot be used.
        """
        functions = calls.offered
        is_reasoning = self.reasoning_format != NONE
        if not functions and not is_reasoning:
            return None
        tools, style, reasoning = None, None, None
        if functions:
            tools = tool_formats()[self._format_of(calls)]
            style = CallStyle.of(tools, self._template.source)
            if calls.choice == "required" and not style.can_write(calls):
                # JSON can be held to every schema that is taken at all.
                tools = tool_formats()[DEFAULT]
                style = CallStyle.of(tools, self._template.source)
        if is_reasoning:
            reasoning = reasoning_formats()[self.reasoning_format].grammar
        return AnswerSyntax(
            tools=tools,
            style=style,
            reasoning=reasoning,
            schemas={function.name: function.schema for function in functions},
            is_reasoning_open=reasoning is not None and reasoning.is_open(prompt),
            max_calls=calls.max_calls,
            max_equal=calls.max_equal_calls,
            finish_reason=calls.finish_reason,
            is_forced=calls.choice == "required",
            certain=style.certain if style is not None else (),
        )

    def reasoning_limit(self, max_tokens: int, prompt: str) -> ReasoningLimit | None:
        """The limit on the reasoning that follows a prompt; None where there is none to limit."""
        if self.reasoning_format == NONE:
            return None
        grammar = reasoning_formats()[self.reasoning_format].grammar
        return ReasoningLimit(
            max_tokens,
            grammar.opens,
            grammar.closes,
            is_open=grammar.is_open(prompt),
            reopens=grammar.reopens,
        )

    def effort_variables(self, effort: str) -> dict[str, Any] | None:
        """The variables of the template that ask for an effort; None if it has none.

        A level that the template does not know becomes the nearest of low, medium and high.
        """
        source = self._template.source
        if effort == "none":
            return {"enable_thinking": False} if "enable_thinking" in source else {}
        if "reasoning_effort" not in source:
            return None
        is_known = f"'{effort}'" in source or f'"{effort}"' in source
        return {"reasoning_effort": effort if is_known else _NEAREST.get(effort, effort)}

    def budget_of(self, effort: str | None) -> int | None:
        """The most tokens of reasoning that an effort means, if it means a number.

        No effort is a variable of the template where it has one, else reasoning of no tokens.
        """
        is_switched = "enable_thinking" in self._template.source
        return None if effort != "none" or is_switched else 0

    def needs_special_tokens(self, syntax: AnswerSyntax) -> bool:
        """Whether marks of the syntax are special tokens, which are no text otherwise."""
        marks: Sequence[str] = () if syntax.reasoning is None else syntax.reasoning.marks
        if syntax.tools is not None:
            written = () if syntax.style is None else syntax.style.marks
            marks = (*marks, *syntax.tools.grammar.marks, *written)
        return not self._special_tokens.isdisjoint(marks)


@cache
def _all_marks() -> tuple[str, ...]:
    """Marks of calls and reasoning in all formats: models know more than their template shows."""
    tools = (mark for f in tool_formats().values() for way in f.written for mark in f.marks_of(way))
    reasoning = (mark for f in reasoning_formats().values() for mark in f.grammar.marks)
    return tuple(dict.fromkeys((*tools, *reasoning)))


def _is_empty(message: dict[str, Any]) -> bool:
    """Whether it is a turn of the assistant in which nothing is said or called."""
    is_said = message["content"].strip() or message.get("tool_calls")
    return message["role"] == "assistant" and not is_said


def _is_system(message: dict[str, Any]) -> bool:
    return message["role"] == "system"


def _as_user(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "role": "user"} if _is_system(message) else message


def _are_of_user(message: dict[str, Any], following: dict[str, Any]) -> bool:
    return message["role"] == following["role"] == "user"


def _with_joined_users(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, those of the user that follow each other as one.

    Between them was an answer that the client has not kept: it had nothing but reasoning, say.
    """
    joined: list[dict[str, Any]] = []
    for is_user, same in groupby(messages, key=lambda message: message["role"] == "user"):
        group = list(same)
        if is_user and len(group) > 1:
            text = "\n\n".join(message["content"] for message in group)
            group = [{**group[0], "content": text}]
        joined += group
    return joined


def _with_a_blank(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": " "} if _is_empty(message) else message
