"""Stop sequences of tokens: which of the output's tokens are text for certain."""

from __future__ import annotations

from collections.abc import Sequence


class StopSequences:
    """Follows one request's tokens.

    The sequence that is complete first ends the text; of two complete at the same token the longer
    one. Tokens that may begin one are held back.

    Args:
        sequences: None of them empty.
        min_tokens: A sequence that is complete before this many tokens is plain text.
    """

    def __init__(self, sequences: Sequence[tuple[int, ...]], min_tokens: int = 0):
        assert all(sequences), "an empty stop sequence would end every text"
        self._sequences = sorted(sequences, key=len, reverse=True)
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._held: tuple[int, ...] = ()

    def push(self, token_id: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Takes the next token.

        Returns:
            Tokens that are text, and the stop sequence that comes after them or ().
        """
        self._num_tokens += 1
        held = (*self._held, token_id)
        if self._num_tokens >= self._min_tokens:
            for stop in self._sequences:
                if held[-len(stop) :] == stop:
                    self._held = ()
                    return held[: -len(stop)], stop
        start = min(_possible_start(held, stop) for stop in self._sequences)
        self._held = held[start:]
        return held[:start], ()

    def finish(self) -> tuple[int, ...]:
        """The tokens held back, which are text after all."""
        held, self._held = self._held, ()
        return held


def _possible_start(held: tuple[int, ...], stop: tuple[int, ...]) -> int:
    """Where the longest ending of `held` that begins `stop` starts, or its length."""
    first = max(0, len(held) - len(stop) + 1)
    return next(
        (i for i in range(first, len(held)) if held[i:] == stop[: len(held) - i]), len(held)
    )
