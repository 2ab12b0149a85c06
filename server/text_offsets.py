"""Where in a text its tokens stand, for the `text_offset` of the legacy completions API."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rtpjax.engine.detokenizer import Detokenizer
from server.token_text import TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A tokenizer that rewrites its input (NFC) gives tokens that are a little longer or shorter than
# the prompt's text is there: the next token is looked for that far ahead.
_MAX_DRIFT = 8


class TextOffsets:
    """Offsets of tokens as they come, whether the text is streamed or whole.

    Tokens that are parts of a character share its offset. Characters are counted in the bytes of
    the tokens, as they come; wherever a token is plain text, the engine's own detokenizer says
    where that ends, since some tokenizers drop a blank or judge several bytes together.

    Attributes:
        end: Where the text ends so far.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        tokens: TokenText,
        *,
        start: int = 0,
        prompt_token_ids: Sequence[int] = (),
        skip_special_tokens: bool = False,
    ):
        self.end = start
        self._tokens = tokens
        self._skips_special = skip_special_tokens
        self._num_chars = start
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._detokenizer = Detokenizer(
            tokenizer, prompt_token_ids=prompt_token_ids, skip_special_tokens=skip_special_tokens
        )

    @property
    def next(self) -> int:
        """Where a character that begins now has its place."""
        begun, _ = self._decoder.getstate()
        return self._num_chars + bool(begun)

    def of(self, token_id: int) -> int:
        """The offset of the next token."""
        is_skipped = self._skips_special and self._tokens.is_special(token_id)
        raw = b"" if is_skipped else self._tokens.bytes_of(token_id)
        begun, _ = self._decoder.getstate()
        offset = self._num_chars + int(bool(begun and raw) and not _goes_on(begun, raw))
        self._num_chars += len(self._decoder.decode(raw))
        text = self._detokenizer.push([token_id])
        self.end += len(text)
        own = self._tokens.whole_text_of(token_id)
        if text and own and (text.endswith(own) or own.endswith(text)):
            self._num_chars = self.end
            return self.end - min(len(own), len(text))
        return offset

    def skip(self, num_chars: int) -> None:
        """Moves on over text that has no tokens."""
        self.end += num_chars
        self._num_chars += num_chars


def prompt_offsets(
    tokenizer: PreTrainedTokenizerFast, tokens: TokenText, token_ids: Sequence[int], text: str
) -> list[int]:
    """The offsets of a prompt's tokens in the prompt's text.

    Args:
        tokenizer: The model's.
        tokens: Their texts.
        token_ids: Of the prompt. Special tokens that the tokenizer adds are in no text.
        text: As the caller wrote it, or decoded from the ids.
    """
    offsets = TextOffsets(tokenizer, tokens)
    found = []
    for token_id in token_ids:
        own = tokens.whole_text_of(token_id)
        if tokens.is_added(token_id) and own and not text.startswith(own, offsets.next):
            found.append(offsets.next)
            continue
        offset = offsets.of(token_id)
        if own and not text.startswith((own, own.lstrip()), offset):
            found_at = text.find(own, offset, offset + len(own) + _MAX_DRIFT)
            if found_at >= 0:
                offsets.skip(found_at - offset)
                offset = found_at
        found.append(min(offset, len(text)))
    return found


def _goes_on(begun: bytes, raw: bytes) -> bool:
    """Whether the first byte of `raw` belongs to the character that has begun."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(begun + raw[:1])
    except UnicodeDecodeError:
        return False
    return True
