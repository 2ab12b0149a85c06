"""Token ids to text, in increments that never take anything back.

The increments of one request, joined, are what decoding all its tokens at once would give after
its prompt. What could still change is held back:

- an incomplete UTF-8 character, which decodes to U+FFFD until its last byte has come;
- a run of byte tokens `<0xE4>`, which is judged as a whole: one bad byte turns all into U+FFFD;
- text that may be the beginning of a stop string, tokens that may be that of a stop sequence.

`tokenizers.decoders.DecodeStream` does nearly this. It is not used: it raises "Invalid prefix
encountered" when a run of byte tokens turns out bad (any Llama-2 style tokenizer, sampled at a high
temperature), and because it cannot flush an incomplete character when a request ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from rtpjax.engine.stop_sequences import StopSequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# An incomplete character is at most three one-byte tokens; the fourth keeps a decoder that strips
# a leading space (Llama-2) from stripping one inside the text.
CONTEXT_TOKENS = 4
# Decoding costs 0.3 us and 0.1 us a token: the window is cut back rarely rather than at each token.
MAX_WINDOW_TOKENS = 16

REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class _TokenKinds:
    """Which ids of a tokenizer are special, and which stand for one raw byte."""

    special_ids: frozenset[int]
    byte_ids: frozenset[int]


@lru_cache(maxsize=8)
def _token_kinds(tokenizer: PreTrainedTokenizerFast) -> _TokenKinds:
    """Looked up once per tokenizer: some have thousands of added tokens."""
    backend = tokenizer.backend_tokenizer
    added = backend.get_added_tokens_decoder()
    byte_ids = (backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return _TokenKinds(
        special_ids=frozenset(token_id for token_id, token in added.items() if token.special),
        byte_ids=frozenset(token_id for token_id in byte_ids if token_id is not None),
    )


class Detokenizer:
    """The text of one request, as its tokens come.

    The stop string that is complete first ends the text; of two complete at the same character the
    longer one. So the text does not depend on how tokens or pushes cut it.

    Attributes:
        stop_reason: The stop string, or the text of the stop sequence, that ended the text, or
            None. Once set, no more text comes.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        prompt_token_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        stop: tuple[str, ...] = (),
        min_tokens: int = 0,
        include_stop_str_in_output: bool = False,
        stop_sequences: Sequence[tuple[int, ...]] = (),
    ):
        """Starts after a prompt.

        Args:
            prompt_token_ids: The text continues these; with none, the text begins as a decoded text
                does (some tokenizers strip its leading space). Only the last few tokens are read.
            stop: Strings that end the text, none of them empty.
            min_tokens: A stop that is complete before this many tokens is plain text.
            stop_sequences: Tokens that end the text, none of them empty.
        """
        assert all(stop), "an empty stop string would end every text"
        self.stop_reason: str | None = None
        self._backend = tokenizer.backend_tokenizer
        kinds = _token_kinds(tokenizer)
        self._skipped_ids = kinds.special_ids if skip_special_tokens else frozenset()
        self._byte_ids = kinds.byte_ids
        self._stop = stop
        self._min_tokens = min_tokens
        self._include_stop = include_stop_str_in_output
        self._sequences = StopSequences(stop_sequences, min_tokens) if stop_sequences else None
        self._num_tokens = 0
        # Tokens still needed as context, and the part of their text that has been given out.
        self._window = self._tail(prompt_token_ids)
        self._shown = self._decode()
        self._held = ""  # may be the beginning of a stop string

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes the next tokens and returns the text that is now certain, which may be ""."""
        if self._sequences is None:
            return self._push(token_ids)
        return "".join(self._push_guarded(token_id, self._sequences) for token_id in token_ids)

    def finish(self) -> str:
        """Returns what was held back, incomplete characters as U+FFFD; may complete a stop."""
        text = "" if self._sequences is None else self._push(self._sequences.finish())
        return text + self._finish()

    def _push_guarded(self, token_id: int, sequences: StopSequences) -> str:
        """Takes a token that may belong to a stop sequence."""
        if self.stop_reason is not None:
            return ""
        token_ids, stop = sequences.push(token_id)
        text = self._push(token_ids)
        if not stop:
            return text
        text += (self._push(stop) if self._include_stop else "") + self._finish()
        if self.stop_reason is None:
            self.stop_reason = self._backend.decode(stop, skip_special_tokens=False)
        return text

    def _push(self, token_ids: Sequence[int]) -> str:
        if self._stop and self._num_tokens < self._min_tokens:
            # The border of min_tokens may lie inside these tokens.
            return "".join(self._advance([token_id]) for token_id in token_ids)
        return self._advance(token_ids)

    def _finish(self) -> str:
        if self.stop_reason is not None:
            return ""
        text = self._release(self._take(self._decode()))
        if self.stop_reason is None:
            text += self._held
            self._held = ""
        return text

    def _advance(self, token_ids: Sequence[int]) -> str:
        if self.stop_reason is not None:
            return ""
        self._num_tokens += len(token_ids)
        self._window += [token_id for token_id in token_ids if self._is_text(token_id)]
        if not self._window or self._window[-1] in self._byte_ids:
            return ""
        new = self._take(_settled(self._decode()))
        if len(self._window) > MAX_WINDOW_TOKENS:
            self._window = self._tail(self._window)
            self._shown = _settled(self._decode())
        return self._release(new)

    def _is_text(self, token_id: int) -> bool:
        """False for skipped tokens and for ids outside the vocabulary (models pad their logits)."""
        return token_id not in self._skipped_ids and self._backend.id_to_token(token_id) is not None

    def _tail(self, token_ids: Sequence[int]) -> list[int]:
        """The last few tokens with text; more if they would begin inside a run of byte tokens."""
        tail: list[int] = []
        for token_id in reversed(token_ids):
            if self._is_text(token_id):
                tail.append(token_id)
                if len(tail) >= CONTEXT_TOKENS and token_id not in self._byte_ids:
                    break
        tail.reverse()
        return tail

    def _decode(self) -> str:
        return self._backend.decode(self._window, skip_special_tokens=False)

    def _take(self, text: str) -> str:
        """Returns what `text`, the window's text, adds to what has been given out."""
        if self._shown.startswith(text):
            return ""
        start = len(self._shown)
        if not text.startswith(self._shown):
            # Only where the prompt ended inside a character that the output completes.
            pairs = enumerate(zip(self._shown, text, strict=False))
            start = next(i for i, (old, new) in pairs if old != new)
        self._shown = text
        return text[start:]

    def _release(self, new: str) -> str:
        """Returns the part of the held and the new text that cannot be part of a stop string."""
        if not self._stop or not new:
            return new
        text = self._held + new
        if self._num_tokens >= self._min_tokens:
            found = self._find_stop(text, len(self._held))
            if found is not None:
                start, self.stop_reason = found
                self._held = ""
                return text[:start] + (self.stop_reason if self._include_stop else "")
        held_from = min(_possible_start(text, stop) for stop in self._stop)
        self._held = text[held_from:]
        return text[:held_from]

    def _find_stop(self, text: str, num_searched: int) -> tuple[int, str] | None:
        """Returns start and text of the first stop string that ends after the searched part."""
        first: tuple[int, int, str] | None = None
        for stop in self._stop:
            start = text.find(stop, max(0, num_searched - len(stop) + 1))
            if start >= 0:
                found = (start + len(stop), start, stop)
                first = found if first is None else min(first, found)
        return None if first is None else first[1:]


def _settled(text: str) -> str:
    """Without the last character where that may be an incomplete one."""
    return text[:-1] if text.endswith(REPLACEMENT) else text


def _possible_start(text: str, stop: str) -> int:
    """Returns where the longest ending of `text` that begins `stop` starts, or its length."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return start
        start = text.find(stop[0], start + 1)
    return len(text)
