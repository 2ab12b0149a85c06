"""Finds control tokens in text of callers, and what may become one next to other text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from tokenizers import AddedToken, Tokenizer, models

# (start, end) in characters.
Span = tuple[int, int]

# How control tokens look that some tokenizers do not call special: <|fim_prefix|>, <｜User｜>.
_MARK = re.compile(r"<[|｜].*[|｜]>")
# What a formatting function replaces in a text.
_PLACEHOLDER = re.compile(r"%[^%]|\{[^}]*\}")


class ControlTokens:
    """The control tokens of one model with one chat template.

    Attributes:
        texts: The tokens: special ones, and added ones that look like these, that the template
            writes, or that mark calls or reasoning. Others, such as Gemma's HTML tags, are a
            tokenizer's way to write what may be in any text.
    """

    def __init__(
        self,
        texts: Iterable[str],
        literals: Iterable[str] = (),
        normalize: Callable[[str], str] | None = None,
    ):
        """Args:
        texts: The tokens.
        literals: Texts that stand before what callers wrote.
        normalize: What the tokenizer changes texts into before it looks for these tokens in them.
        """
        self.texts = frozenset(text for text in texts if text and not text.isspace())
        self._literals = tuple(literals)
        self._normalize = normalize

    @cached_property
    def _finder(self) -> Tokenizer:
        # Finds thousands of tokens in one pass, and as a tokenizer does.
        finder = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
        finder.add_special_tokens([AddedToken(t, normalized=False) for t in sorted(self.texts)])
        return finder

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        """What tokens begin with."""
        return frozenset(text[:end] for text in self.texts for end in range(1, len(text)))

    @cached_property
    def _open(self) -> frozenset[str]:
        """The beginnings of tokens that the template writes right before another text."""
        pieces = {piece for text in self._literals for piece in _PLACEHOLDER.split(text)}
        found = {begin for piece in pieces for begin in self._ends(piece)}
        while True:
            longer = {begin + piece for begin in found for piece in pieces} & self._beginnings
            if longer <= found:
                return frozenset(found)
            found |= longer

    @cached_property
    def _rests(self) -> frozenset[str]:
        """What completes a token that the template has begun."""
        starts = ((begin, text) for begin in self._open for text in self.texts)
        return frozenset(text[len(begin) :] for begin, text in starts if text.startswith(begin))

    @cached_property
    def _first_chars(self) -> frozenset[str]:
        return frozenset(text[0] for text in self.texts)

    @cached_property
    def _next_chars(self) -> frozenset[str]:
        return frozenset(rest[0] for rest in self._rests)

    @cached_property
    def _most_chars(self) -> int:
        return max(map(len, self.texts), default=0)

    def _ends(self, text: str) -> Iterator[str]:
        """The beginnings of tokens that a text ends with, the longest first."""
        for length in range(min(len(text), self._most_chars - 1), 0, -1):
            if text[-length:] in self._beginnings:
                yield text[-length:]

    def whole(self, text: str) -> list[Span]:
        """Where tokens stand in a text."""
        spans = self._found(text)
        if self._normalize is not None and len(self._found(self._normalize(text))) > len(spans):
            return [(0, len(text))]
        return spans

    def _found(self, text: str) -> list[Span]:
        # A batch of one: encode() would keep the interpreter's lock.
        [found] = self._finder.encode_batch([text], add_special_tokens=False)
        return [span for token_id, span in zip(found.ids, found.offsets, strict=True) if token_id]

    def has_any(self, texts: Iterable[str]) -> bool:
        """Whether there may be tokens or parts of tokens in one of many texts."""
        texts = tuple(texts)
        # (No token has a null in it.)
        return bool(self.whole("\0".join(texts))) or any(map(self._parts, texts))

    def _parts(self, text: str) -> list[Span]:
        """Where a text has parts of tokens that become whole next to other text."""
        found: list[Span] = []
        # Templates trim texts, or do not.
        end = len(text.rstrip())
        tail = text[max(0, end - self._most_chars) :]
        if not self._first_chars.isdisjoint(tail):
            for stop in {len(text), end}:
                found += [(stop - len(begin), stop) for begin in self._ends(text[:stop])][:1]
        for first in {0, len(text) - len(text.lstrip())}:
            if text[first : first + 1] not in self._next_chars:
                continue
            head = text[first : first + self._most_chars]
            if any(begin + head in self._beginnings for begin in self._open):
                found.append((first, first + len(head)))
            ends = (n for n in range(len(head), 0, -1) if head[:n] in self._rests)
            found += [(first, first + n) for n in ends][:1]
        return found

    def spans(self, text: str, exempt: frozenset[str] = frozenset()) -> list[Span]:
        """The parts of a caller's text that might become tokens, or parts of tokens.

        Args:
            text: The text.
            exempt: Tokens that may stand in it.
        """
        found = self.whole(text)
        spans = [span for span in found if text[slice(*span)] not in exempt]
        if len(spans) < len(found):
            # What is left when a template takes those out that may stand in it is a text, too.
            kept = ("" if text[slice(*span)] in exempt else "\0" for span in found)
            rest = "".join(itertools.chain(*zip(_outside(text, found), (*kept, ""), strict=True)))
            if self.whole(rest) or self._parts(rest):
                spans = found
        return _merged(spans + self._parts(text)) if text else []


def control_tokens(backend: Tokenizer, literals: Iterable[str]) -> ControlTokens:
    """The control tokens of a tokenizer with a chat template.

    Args:
        backend: The tokenizer.
        literals: The texts that the template and the server write.
    """
    literals = tuple(literals)
    written = "\0".join(literals)
    added = backend.get_added_tokens_decoder().values()
    tokens = [
        token
        for token in added
        if token.special or token.content in written or _MARK.fullmatch(token.content)
    ]
    normalizer = backend.normalizer
    is_normalized = any(token.normalized for token in tokens)
    normalize = normalizer.normalize_str if normalizer is not None and is_normalized else None
    return ControlTokens((token.content for token in tokens), literals, normalize)


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, those that overlap as one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _outside(text: str, spans: Iterable[Span]) -> Iterator[str]:
    at = 0
    for start, end in spans:
        yield text[at:start]
        at = end
    yield text[at:]
