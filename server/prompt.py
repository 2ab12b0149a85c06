"""Text -> token ids, checked against the context. All of it runs in a worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rtpjax.errors import RequestError
from server import limits
from server.function_calls import CallOptions
from server.function_calls.support import CallSupport
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

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        # The backend, not the wrapper: the wrapper sets truncation on each call, which fails when
        # two threads encode. A tokenizer.json may switch truncation on; a prompt is never cut.
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size = len(tokenizer)

    async def encode_chat(
        self,
        support: CallSupport,
        messages: list[dict[str, Any]],
        variables: dict[str, Any],
        calls: CallOptions = _NO_CALLS,
    ) -> EncodedPrompt:
        """Renders and encodes; the template writes the special tokens, so none are added again."""

        def work() -> EncodedPrompt:
            text = support.render(messages, calls, variables)
            encoding = self._backend.encode(text, add_special_tokens=False)
            return EncodedPrompt(tuple(encoding.ids), text)

        return await asyncio.to_thread(work)

    async def encode_completion(
        self, prompt: Prompt, *, add_special_tokens: bool = True
    ) -> EncodedPrompt:
        """Encodes text with the tokenizer's own special tokens, or takes token ids as they are."""
        if isinstance(prompt, str):
            encoding = await asyncio.to_thread(
                self._backend.encode, prompt, add_special_tokens=add_special_tokens
            )
            return EncodedPrompt(tuple(encoding.ids), prompt)
        for token_id in prompt:
            if not 0 <= token_id < self.vocab_size:
                reason = f"a token id is outside the vocabulary of {self.vocab_size}"
                raise field_error("prompt", reason)
        text = await asyncio.to_thread(self._backend.decode, prompt, skip_special_tokens=False)
        return EncodedPrompt(tuple(prompt), text)

    async def encode_bad_words(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """The token sequences that spell a word, at the start of a text and after a blank."""

        def work() -> list[tuple[int, ...]]:
            found: dict[tuple[int, ...], None] = {}
            for index, word in enumerate(words):
                for text in (word, " " + word.lstrip()):
                    token_ids = self._backend.encode(text, add_special_tokens=False).ids
                    _check_bad_word(index, token_ids)
                    if token_ids:
                        found[tuple(token_ids)] = None
            return list(found)

        return await asyncio.to_thread(work)


def _check_bad_word(index: int, token_ids: list[int]) -> None:
    if len(token_ids) > limits.MAX_BAD_WORD_TOKENS:
        reason = f"{len(token_ids)} tokens, at most {limits.MAX_BAD_WORD_TOKENS} are allowed"
        raise field_error(f"bad_words[{index}]", reason)


def check_lengths(
    prompt_len: int, max_tokens: int | None, max_model_len: int, *, param: str
) -> None:
    """Refuses a prompt that does not fit the context, or leaves too little of it for `max_tokens`.

    Raises:
        RequestError: With OpenAI's code, and both lengths in the message.
    """
    if prompt_len == 0:
        raise field_error(param, "the prompt has no tokens")
    wanted = 1 if max_tokens is None else max_tokens
    if prompt_len + wanted <= max_model_len:
        return
    message = f"the model's context is {max_model_len} tokens, but the prompt has {prompt_len}"
    remedy = "shorten the prompt"
    if max_tokens is not None and prompt_len < max_model_len:
        message += f" and max_tokens is {max_tokens} ({prompt_len + max_tokens} together)"
        remedy = "lower max_tokens or shorten the prompt"
    raise RequestError(f"{message}; {remedy}", param=param, code="context_length_exceeded")
