"""Text -> token ids, checked against the context. All of it is part of preparing a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rtpjax.errors import RequestError
from server import limits
from server.control_tokens import Span
from server.function_calls import CallOptions, Function
from server.function_calls.support import CallSupport
from server.masked_prompt import located
from server.masks import Conversation
from server.plain_tokens import PlainEncoder
from server.protocol.body import field_error
from server.protocol.completions import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_NO_CALLS = CallOptions()


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model sees it, and its text (for `echo`)."""

    token_ids: tuple[int, ...]
    text: str


class PromptEncoder:
    """Makes prompts for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, allows_control_tokens: bool = False):
        """Args:
        tokenizer: The model's.
        allows_control_tokens: Whether text of callers in a chat may become control tokens.
        """
        # The backend, not the wrapper: the wrapper sets truncation on each call, which fails when
        # two threads encode. A tokenizer.json may switch truncation on; a prompt is never cut.
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._plain = PlainEncoder(self._backend)
        self._allows_control_tokens = allows_control_tokens
        self.vocab_size = len(tokenizer)

    def encode_chat(
        self,
        support: CallSupport,
        messages: list[dict[str, Any]],
        variables: dict[str, Any],
        calls: CallOptions = _NO_CALLS,
    ) -> EncodedPrompt:
        """Renders and encodes; the template writes the special tokens, so none are added again."""
        text, spans = self._rendered(support, messages, variables, calls)
        if not spans:
            return EncodedPrompt(self._ids(text, add_special_tokens=False), text)
        control = support.control_tokens(self._backend).texts
        return EncodedPrompt(tuple(self._plain.encode(text, spans, control)), text)

    def _rendered(
        self,
        support: CallSupport,
        messages: list[dict[str, Any]],
        variables: dict[str, Any],
        calls: CallOptions,
    ) -> tuple[str, list[Span]]:
        """The prompt's text, and where in it callers' text must not become control tokens."""
        text = support.render(messages, calls, variables)
        if self._allows_control_tokens:
            return text, []
        tokens = support.control_tokens(self._backend)
        definitions = [function.definition for function in calls.functions]
        other = [*definitions, *variables.values()]
        conversation = Conversation(tokens, messages, other, support.assistant_marks)
        if conversation.is_clean:
            return text, []
        masks = conversation.masks(support.source)
        functions = [Function(conversation.masked(d, masks)) for d in definitions]
        masked = support.render(
            conversation.masked_messages(masks),
            replace(calls, functions=tuple(functions)),
            {name: conversation.masked(value, masks) for name, value in variables.items()},
        )
        return located(text, masked, masks)

    def encode_completion(
        self, prompt: Prompt, *, add_special_tokens: bool = True
    ) -> EncodedPrompt:
        """Encodes text with the tokenizer's own special tokens, or takes token ids as they are."""
        if isinstance(prompt, str):
            ids = self._ids(prompt, add_special_tokens=add_special_tokens)
            return EncodedPrompt(ids, prompt)
        if not 0 <= min(prompt) <= max(prompt) < self.vocab_size:
            reason = f"a token id is outside the vocabulary of {self.vocab_size}"
            raise field_error("prompt", reason)
        return EncodedPrompt(tuple(prompt), self.decode(prompt, skip_special_tokens=False))

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids."""
        # As in _ids: decode() would keep the interpreter's lock.
        return self._backend.decode_batch([token_ids], skip_special_tokens=skip_special_tokens)[0]

    def _ids(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        # A batch of one: encode() keeps the interpreter's lock until it is done, and so would hold
        # up the event loop from its thread; encode_batch_fast() lets go of it.
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return tuple(encoding.ids)

    def encode_bad_words(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """The token sequences that spell a word, at the start of a text and after a blank."""

        found: dict[tuple[int, ...], None] = {}
        for index, word in enumerate(words):
            for text in (word, " " + word.lstrip()):
                token_ids = self._ids(text, add_special_tokens=False)
                _check_bad_word(index, token_ids)
                if token_ids:
                    found[token_ids] = None
        return list(found)


def _check_bad_word(index: int, token_ids: Sequence[int]) -> None:
    if len(token_ids) > limits.MAX_BAD_WORD_TOKENS:
        reason = f"{len(token_ids)} tokens, at most {limits.MAX_BAD_WORD_TOKENS} are allowed"
        raise field_error(f"bad_words[{index}]", reason)


def check_length(prompt_len: int, max_model_len: int, *, param: str) -> None:
    """Refuses a prompt that leaves no room in the context for an answer.

    What is asked for does not matter: max_tokens is the most, and the engine cuts it to the room.

    Raises:
        RequestError: With OpenAI's code, and both lengths in the message.
    """
    if prompt_len == 0:
        raise field_error(param, "the prompt has no tokens")
    if prompt_len >= max_model_len:
        message = f"the model's context is {max_model_len} tokens, but the prompt has {prompt_len}"
        code = "context_length_exceeded"
        raise RequestError(f"{message}; shorten the prompt", param=param, code=code)
