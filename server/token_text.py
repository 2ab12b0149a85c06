"""Token id -> its text and its exact bytes, for logprobs. A token can be half of a character."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TokenText:
    """Looks tokens up one by one. The pieces of a vocabulary are spelled in one of two ways:

    byte-level BPE (GPT-2, Llama 3, Qwen): each byte is one printable character, a blank is `Ġ`;
    SentencePiece (Llama 2, Mistral): plain text, `▁` for a blank, and `<0x0A>` for single bytes.

    Attributes:
        special_ids: Tokens that are no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        self._added = {
            token_id: str(token) for token_id, token in tokenizer.added_tokens_decoder.items()
        }
        self.special_ids = frozenset(
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        )
        decoder = tokenizer.backend_tokenizer.decoder
        spec = json.loads(decoder.__getstate__()) if decoder is not None else {}
        self._is_byte_level = '"ByteLevel"' in json.dumps(spec)
        self._byte_of = _byte_of_character()
        self._seen: dict[int, bytes] = {}

    def bytes_of(self, token_id: int) -> bytes:
        """The UTF-8 bytes that this token adds to the text."""
        found = self._seen.get(token_id)
        if found is None:
            found = self._seen[token_id] = self._look_up(token_id)
        return found

    def text_of(self, token_id: int) -> str:
        """The text of the token; half a character becomes the replacement character."""
        return self.bytes_of(token_id).decode("utf-8", errors="replace")

    def texts_of(self, token_ids: Sequence[int]) -> list[str]:
        """The texts of many tokens; each is looked up once."""
        found = {token_id: self.text_of(token_id) for token_id in set(token_ids)}
        return [found[token_id] for token_id in token_ids]

    def whole_text_of(self, token_id: int) -> str | None:
        """The text of the token; None if it has a part of a character."""
        try:
            return self.bytes_of(token_id).decode("utf-8")
        except UnicodeDecodeError:
            return None

    def chat_name_of(self, token_id: int) -> str:
        r"""The text of the token as the chat API writes it: `\xf0\x9f` for half a character."""
        text = self.whole_text_of(token_id)
        return _escaped(self.bytes_of(token_id)) if text is None else text

    def name_of(self, token_id: int) -> str:
        r"""The text as the completions API writes it: `bytes:\xf0\x9f` for half a character."""
        text = self.whole_text_of(token_id)
        return f"bytes:{_escaped(self.bytes_of(token_id))}" if text is None else text

    def is_added(self, token_id: int) -> bool:
        """Whether the token stands beside the vocabulary, as special ones do."""
        return token_id in self._added

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` leaves the token out of a text."""
        return token_id in self.special_ids

    def _look_up(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(piece, str):  # a padded id: the model has more rows than the vocabulary
            return b""
        if self._is_byte_level:
            return b"".join(
                bytes([self._byte_of[c]]) if c in self._byte_of else c.encode() for c in piece
            )
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()


def _escaped(raw: bytes) -> str:
    r"""Printable ASCII as it is, other bytes as `\xNN`."""
    return repr(raw)[2:-1]


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 stands for itself, the other bytes for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
