"""Messages -> prompt text, by the model's own Jinja template."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from rtpjax.errors import ConfigError, RequestError
from server.template_process import TemplateProcesses, own_processes
from server.template_worker import Answer, Job

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

# Names of templates that requests without and with tools get, as in transformers.
DEFAULT, TOOL_USE = "default", "tool_use"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Why a template was stopped.
_STOPPED = {
    "late": "the chat template ran longer than {timeout_s} s and was stopped",
    "memory": "the chat template was stopped: for these messages it needs too much memory",
    "long": "the chat template was stopped: for these messages it writes too long a text",
}


class ChatTemplate:
    """One compiled template with the special tokens of its tokenizer. Threads may share it.

    Attributes:
        source: The template's text.
        knows_tools: Whether it renders the functions that a request offers.
        literals: The texts in it that it writes or looks for.
    """

    def __init__(
        self,
        source: str,
        special_tokens: dict[str, str],
        *,
        timeout_s: float,
        processes: TemplateProcesses | None = None,
    ):
        """Args:
            source: The template's text.
            special_tokens: Variables that every rendering has.
            timeout_s: Longest time of one rendering.
            processes: Where it is rendered; by default with the checkpoint's own templates.

        Raises:
            ConfigError: The template is no valid Jinja.
        """
        self.source = source
        self._special_tokens = special_tokens
        self._timeout_s = timeout_s
        self._processes = processes or own_processes()
        answer = self._processes.run(Job(source, None, timeout_s))
        if answer.kind == "syntax":
            raise ConfigError(f"the chat template is no valid Jinja: {answer.reason}")
        if answer.kind != "done":
            raise ConfigError(self._stopped(answer))
        self.knows_tools = answer.knows_tools
        self.literals = tuple(answer.literals)

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerFast, *, timeout_s: float
    ) -> ChatTemplate:
        """The default template of a tokenizer."""
        return chat_templates(tokenizer, timeout_s=timeout_s)[DEFAULT]

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
        is_rewritten: bool = False,
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
            is_rewritten: The messages are not those of the request one by one, so an error can name
                none of them.
            variables: Others that the template may look at.

        Raises:
            RequestError: The template refuses these messages, or takes too long over them.
        """
        if continue_final_message and len(messages) > 1 and not messages[-1]["content"].strip():
            # An answer that has no text yet begins where any answer does.
            messages, continue_final_message = messages[:-1], False
            add_generation_prompt = True
        values = self._special_tokens | variables
        values |= {
            "messages": [_with_thinking(message) for message in messages],
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            "tools": tools,
        }
        answer = self._processes.run(Job(self.source, values, self._timeout_s))
        if answer.kind in ("refused", "syntax"):
            message = f"the chat template refuses these messages: {answer.reason}"
            if not answer.place or is_rewritten:
                raise RequestError(message, param="messages")
            raise RequestError(f"{answer.place}: {message}", param=answer.place)
        if answer.kind != "done":
            raise RequestError(self._stopped(answer), param="messages")
        return (
            _up_to(answer.text, messages[-1]["content"]) if continue_final_message else answer.text
        )

    def _stopped(self, answer: Answer) -> str:
        return _STOPPED[answer.kind].format(timeout_s=self._timeout_s)


def chat_templates(
    tokenizer: PreTrainedTokenizerFast, *, timeout_s: float
) -> dict[str, ChatTemplate]:
    """The templates that came with a tokenizer, by name; without any ChatML, and a warning.

    Raises:
        ConfigError: A template that requests get without naming it is no valid Jinja.
    """
    given: Any = tokenizer.chat_template
    sources: dict[str, str] = given if isinstance(given, dict) else {DEFAULT: given}
    sources = {name: source for name, source in sources.items() if source}
    if not sources:
        logger.warning("the tokenizer has no chat template: messages are rendered as ChatML")
        sources = {DEFAULT: CHATML}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    templates: dict[str, ChatTemplate] = {}
    for name, source in sources.items():
        try:
            templates[name] = ChatTemplate(source, special, timeout_s=timeout_s)
        except ConfigError as error:
            if name in (DEFAULT, TOOL_USE):
                raise
            logger.warning("the chat template %r is left out: %s", name, error)
    return templates


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
