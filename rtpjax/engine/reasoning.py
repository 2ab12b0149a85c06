"""How far a model's reasoning has got, token by token, and when its end is forced.

before ──opens──► open ──closes──► closed        (closed ──opens──► open, where it reopens)
                   │ limit
                   ▼
                  forced: the tokens of the closing mark, one after the other
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rtpjax.engine.request import ReasoningLimit


class ReasoningClock:
    """Counts the reasoning of one request.

    Args:
        limit: What is counted up to.
        closing_ids: The tokens of the closing mark.
        bytes_of: A token's text, special tokens included.

    Attributes:
        forced_id: The only token that may come next; None where the model is free.
    """

    def __init__(
        self, limit: ReasoningLimit, closing_ids: Sequence[int], bytes_of: Callable[[int], bytes]
    ):
        self.forced_id: int | None = None
        self._limit = limit
        self._closing_ids = closing_ids
        self._bytes_of = bytes_of
        self._opens, self._closes = limit.opens.encode(), limit.closes.encode()
        self._text = b""  # what may still become a mark, or a character
        self._num_tokens = 0
        self._num_forced = 0
        self._is_open = limit.is_open
        self._is_closed = False
        self._force()

    def see(self, token_id: int) -> None:
        """Takes the next token in."""
        self._text += self._bytes_of(token_id)
        if self._is_open:
            self._look_for_end()
        elif not self._is_closed or self._limit.reopens:
            self._look_for_beginning()
        self._force()

    def _look_for_end(self) -> None:
        self._num_forced += self.forced_id is not None
        is_forced = self._num_forced == len(self._closing_ids)
        if is_forced or self._closes in self._text:
            self._is_open, self._is_closed = False, True
            self._num_forced = 0
            self._text = self._text.partition(self._closes)[2]
        else:
            self._num_tokens += self.forced_id is None
            self._text = self._text[-max(len(self._closes), 4) :]

    def _look_for_beginning(self) -> None:
        if self._limit.reopens:
            self._is_open = self._opens in self._text
            self._text = b"" if self._is_open else self._text[-len(self._opens) :]
            return
        begun = self._text.lstrip()
        if begun.startswith(self._opens):
            self._is_open, self._text = True, b""
        elif not self._opens.startswith(begun):
            self._is_closed = True  # the answer has begun without reasoning

    def _force(self) -> None:
        is_over = self._is_open and self._num_tokens >= self._limit.max_tokens
        if is_over and (self._num_forced or _is_whole(self._text)):
            self.forced_id = self._closing_ids[self._num_forced]
        else:
            self.forced_id = None


def _is_whole(text: bytes) -> bool:
    """Whether a text, cut anywhere before, does not end inside a character."""
    for length in range(1, min(4, len(text)) + 1):
        byte = text[-length]
        if byte < 0x80:
            return True
        if byte >= 0xC0:  # the first byte tells how many there are
            return length >= (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
    return True
