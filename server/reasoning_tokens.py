"""How many tokens of an answer are reasoning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from server.reasoning_parsers import ReasoningGrammar
from server.token_text import TokenText


class ReasoningCounter:
    """Counts the tokens with text between the marks of one answer, white space included.

    A token counts if one of its bytes is between the marks. The marks themselves do not count, nor
    do special tokens without text, such as the one that ends the answer. It goes by tokens, so the
    count does not depend on when their text is given out.

        before ──opens──► open ──an end──► over        (or before, where reasoning reopens)
    """

    def __init__(
        self, grammar: ReasoningGrammar, bytes_of: Callable[[int], bytes], *, is_open: bool
    ):
        """A counter.

        Args:
            grammar: How the model writes reasoning.
            bytes_of: A token's text; marks included, other special tokens empty.
            is_open: The prompt ends inside the reasoning.
        """
        self._bytes_of = bytes_of
        self._opens = grammar.opens.encode()
        self._ends = [end.encode() for end in grammar.ends]
        self._reopens = grammar.reopens
        self._is_open = is_open
        self._is_over = False
        # Where a prompt has the opening mark already, some models write it once more.
        self._may_repeat = is_open and not grammar.reopens
        self._text = b""  # what may still become a mark, from the beginning of a token on
        self._num_blank = 0  # tokens of white space before a mark that may be a repeated one
        self._tokens: list[tuple[int, int]] = []  # where the tokens in it begin and end
        self._num_settled = 0

    @property
    def num_tokens(self) -> int:
        """The count so far."""
        return self._num_settled + (self._num_blank + len(self._tokens)) * self._is_open

    def see(self, token_ids: Iterable[int]) -> None:
        """Takes the next tokens."""
        for token_id in token_ids:
            text = b"" if self._is_over else self._bytes_of(token_id)
            if text:
                start = len(self._text)
                self._text += text
                self._tokens.append((start, len(self._text)))
                while self._finds_mark():
                    pass

    def _finds_mark(self) -> bool:
        """Goes over the next mark; False if none is complete."""
        if self._is_open and not (self._may_repeat and self._is_repeating()):
            return self._finds_end()
        if self._reopens:
            at = self._text.find(self._opens)
        else:
            self._forget(self._blank_len)
            at = 0 if self._text.startswith(self._opens) else -1
            self._is_over = at < 0 and not self._opens.startswith(self._text)
        if at < 0:
            if self._reopens:
                self._forget(len(self._text) - len(self._opens) + 1)
            return False
        self._forget(at + len(self._opens))
        self._is_open, self._may_repeat, self._num_blank = True, False, 0
        return True

    @property
    def _blank_len(self) -> int:
        return len(self._text) - len(self._text.lstrip())

    def _is_repeating(self) -> bool:
        """Whether all there is after an opening mark is, or may become, the mark once more."""
        blank_len = self._blank_len
        self._num_blank += sum(end <= blank_len for _, end in self._tokens)
        self._forget(blank_len)
        text = self._text
        self._may_repeat = text.startswith(self._opens) or self._opens.startswith(text)
        if not self._may_repeat:
            self._num_settled += self._num_blank
            self._num_blank = 0
        return self._may_repeat

    def _finds_end(self) -> bool:
        found = [at for end in self._ends if (at := self._text.find(end)) >= 0]
        if not found:
            self._settle(len(self._text) - max(map(len, self._ends)) + 1)
            return False
        at = min(found)
        self._num_settled += sum(start < at for start, _ in self._tokens)
        self._is_open = False
        self._is_over = not self._reopens
        self._forget(at)  # the end may be the beginning of an opening mark
        return self._reopens

    def _settle(self, end: int) -> None:
        """Counts the tokens that end there at the latest: no mark can have a part of them."""
        num = sum(token_end <= end for _, token_end in self._tokens)
        self._num_settled += num
        self._forget(self._tokens[num][0] if num < len(self._tokens) else len(self._text))

    def _forget(self, at: int) -> None:
        """Cuts off the text before a place."""
        if at > 0:
            self._text = self._text[at:]
            self._tokens = [(max(s - at, 0), e - at) for s, e in self._tokens if e > at]


@dataclass(frozen=True, slots=True)
class MarkedText:
    """The text of tokens: special ones have none, unless they are marks."""

    tokens: TokenText
    marks: frozenset[str]

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token adds."""
        text = self.tokens.bytes_of(token_id)
        is_silent = token_id in self.tokens.special_ids and text.decode() not in self.marks
        return b"" if is_silent else text


def reasoning_counters(
    grammar: ReasoningGrammar | None, tokens: TokenText, num_choices: int, *, is_open: bool
) -> list[ReasoningCounter]:
    """A counter for each choice of an answer, or none where the model does not reason."""
    if grammar is None:
        return []
    bytes_of = MarkedText(tokens, frozenset(grammar.marks)).bytes_of
    return [ReasoningCounter(grammar, bytes_of, is_open=is_open) for _ in range(num_choices)]
