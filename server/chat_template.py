"""Messages -> prompt text, by the model's own Jinja template, in a sandbox with a time limit.

Templates come from the internet with the weights. Jinja's sandbox keeps them from Python's
internals and caps `range`; what it does not stop is a template that runs for hours. A thread cannot
be killed, so here every loop iteration and every call looks at a deadline, and operators that can
blow up memory look at sizes.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rtpjax.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Templates cannot spell a name with a space, so they cannot replace this variable.
_DEADLINE = "render deadline"
_MAX_REPEATED = 1_000_000
_MAX_POWER = 64
_WIDE = re.compile(r"\*|\d{4,}")

# What a template that meets unexpected messages may raise, besides Jinja's own errors.
_TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """One compiled template with the special tokens of its tokenizer. Threads may share it.

    Attributes:
        source: The template's text.
        knows_tools: Whether it renders the functions that a request offers.
    """

    def __init__(self, source: str, special_tokens: dict[str, str], *, timeout_s: float):
        """Raises: ConfigError: The template is no valid Jinja."""
        environment = _BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.filters[_BOUNDED] = _bounded
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            parsed = environment.parse(source)
            self.knows_tools = "tools" in meta.find_undeclared_variables(parsed)
            self._template = environment.from_string(_bound_loops(parsed))
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"the tokenizer's chat template, line {error.lineno}: {error}"
            ) from error
        self.source = source
        self._special_tokens = special_tokens
        self._timeout_s = timeout_s

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerFast, *, timeout_s: float
    ) -> ChatTemplate:
        """The template that came with the tokenizer; without one ChatML, and a warning."""
        source: Any = tokenizer.chat_template
        if isinstance(source, dict):
            source = source.get("default")
        if not source:
            logger.warning("the tokenizer has no chat template: messages are rendered as ChatML")
            source = CHATML
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        return cls(source, special, timeout_s=timeout_s)

    @property
    def is_fallback(self) -> bool:
        """Whether the tokenizer came without a template."""
        return self.source == CHATML

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt up to where the assistant's answer begins.

        Args:
            messages: At least one, with what the template knows of: role, content, calls,
                reasoning.
            tools: The functions that are offered, in OpenAI's form.
            add_generation_prompt: Whether the prompt opens the assistant's turn.
            continue_final_message: The answer goes on where the last message ends, which is the
                assistant's; what the template writes after it is cut off.
            variables: Others that the template may look at.

        Raises:
            RequestError: The template refuses these messages, or takes too long over them.
        """
        values = self._special_tokens | variables
        values |= {
            # Copies: a template may change lists (see `is_safe_attribute`).
            "messages": [_with_thinking(message) for message in copy.deepcopy(messages)],
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            "tools": copy.deepcopy(tools),
        }
        try:
            text = self._template.render(values | {_DEADLINE: time.monotonic() + self._timeout_s})
        except TimeoutError as error:
            message = f"the chat template ran longer than {self._timeout_s} s and was stopped"
            raise RequestError(message, param="messages") from error
        except _TEMPLATE_FAILURES as error:
            message = f"the chat template refuses these messages: {error}"
            raise RequestError(message, param="messages") from error
        return _up_to(text, messages[-1]["content"]) if continue_final_message else text


def _up_to(text: str, content: str) -> str:
    """A rendered prompt without what follows the last message's content."""
    # Templates trim contents, or do not.
    for wanted in (content, content.strip()):
        # Both the other way round, as Python's search backwards is not always linear.
        at = text[::-1].find(wanted[::-1])
        if wanted and at >= 0:
            return text[: len(text) - at]
    message = "the last message cannot be continued: the chat template does not write it as it is"
    raise RequestError(message, param="messages")


def _with_thinking(message: dict[str, Any]) -> dict[str, Any]:
    # As transformers does: gpt-oss' template reads a former turn's reasoning under this name.
    if "reasoning_content" not in message:
        return message
    return {"thinking": message["reasoning_content"], **message}


# ("render bounded" has a space, too: no template can name the filter.)
_BOUNDED = "render bounded"


def _bound_loops(template: nodes.Template) -> nodes.Template:
    """Sends what every `for` iterates over through the deadline filter."""
    for loop in template.find_all(nodes.For):
        line = loop.iter.lineno
        loop.iter = nodes.Filter(loop.iter, _BOUNDED, [], [], None, None, lineno=line)
    return template


@jinja2.pass_context
def _bounded(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _check_deadline(context)
        yield item


def _check_deadline(context: Context) -> None:
    if time.monotonic() > context.parent[_DEADLINE]:
        raise TimeoutError


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # Kimi K2's template keeps ids in a list of its own.
        is_queue = attr in ("append", "pop") and type(obj) is list
        return is_queue or super().is_safe_attribute(obj, attr, value)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        # Positional as in Jinja's own signature (context, object, *args): macros take any keyword.
        _check_deadline(args[0])
        return super().call(*args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_deadline(context)
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise jinja2.TemplateRuntimeError(f"the format {left!r} is too wide")
        if operator == "**" and max(abs(float(left)), abs(float(right))) > _MAX_POWER:
            raise jinja2.TemplateRuntimeError(f"{left} ** {right} is too large")
        if operator == "*" and _repeated_len(left, right) > _MAX_REPEATED:
            raise jinja2.TemplateRuntimeError("a repeated value is too long")
        return super().call_binop(context, operator, left, right)


def _repeated_len(left: Any, right: Any) -> int:
    if isinstance(left, int):
        left, right = right, left
    return len(left) * right if isinstance(left, Sized) and isinstance(right, int) else 0


class _Generation(Extension):
    """`{% generation %}` marks the assistant's tokens for training; it renders as what it holds."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it this way)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Macro | Callable[[], str]) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which no model was trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
