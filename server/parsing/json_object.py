"""Says of text, as it comes, how far it can be the beginning of a JSON object.

Each character is looked at once: the arguments of a call come in thousands of pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_SPACE = " \t\n\r"
# What a string has in it between escapes.
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_HEX = frozenset("0123456789abcdefABCDEF")
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_CLOSES = {"{": "}", "[": "]"}
# As many as the parser of whole arguments reads.
_MAX_DEPTH = 200
_MAX_DIGITS = 4300

# A number's parts -> what follows them: the part that a kind of character leads to.
_NUMBER = {
    "-": {"0": "zero", "9": "int"},
    "zero": {".": ".", "e": "e"},
    "int": {"0": "int", "9": "int", ".": ".", "e": "e"},
    ".": {"0": "fraction", "9": "fraction"},
    "fraction": {"0": "fraction", "9": "fraction", "e": "e"},
    "e": {"+": "sign", "0": "exponent", "9": "exponent"},
    "sign": {"0": "exponent", "9": "exponent"},
    "exponent": {"0": "exponent", "9": "exponent"},
}
_COMPLETE = frozenset(("zero", "int", "fraction", "exponent"))
_KINDS = {
    "0": "0", **dict.fromkeys("123456789", "9"), ".": ".", "e": "e", "E": "e", "+": "+", "-": "+",
}  # fmt: skip


class ObjectBeginning:
    """Reads one object; refuses from the first character on that cannot be part of it."""

    def __init__(self) -> None:
        self._open: list[str] = []
        # Takes the text from a place on; where it goes on, or None where a character is refused.
        self._next: Callable[[str, int], int | None] = self._begin
        self._is_key = False
        self._left = ""  # of a literal
        self._part, self._num_digits = "", 0  # of a number
        self._digits, self._is_low_due = "", False  # of an escape

    def take(self, text: str) -> int:
        """How many characters of the next text belong to the object."""
        at = 0
        while at < len(text):
            after = self._next(text, at)
            if after is None:
                self._next = _refuse
                return at
            at = after
        return at

    def _begin(self, text: str, at: int) -> int | None:
        if text[at] in _SPACE:
            return at + 1
        return self._value(text, at) if text[at] == "{" else None

    def _value(self, text: str, at: int) -> int | None:
        character = text[at]
        if character in _SPACE:
            return at + 1
        if character in _CLOSES:
            if len(self._open) == _MAX_DEPTH:
                return None
            self._open.append(character)
            self._next = self._first_key if character == "{" else self._first_item
        elif character == '"':
            self._is_key, self._next = False, self._string
        elif character in _LITERALS:
            self._left, self._next = _LITERALS[character][1:], self._literal
        elif character in "-0123456789":
            self._part = _NUMBER["-"].get(_KINDS[character], "-")
            self._num_digits, self._next = 1, self._number
        else:
            return None
        return at + 1

    def _first_item(self, text: str, at: int) -> int | None:
        return self._end(text, at) if text[at] == "]" else self._value(text, at)

    def _first_key(self, text: str, at: int) -> int | None:
        return self._end(text, at) if text[at] == "}" else self._key(text, at)

    def _key(self, text: str, at: int) -> int | None:
        if text[at] == '"':
            self._is_key, self._next = True, self._string
            return at + 1
        return at + 1 if text[at] in _SPACE else None

    def _colon(self, text: str, at: int) -> int | None:
        if text[at] == ":":
            self._next = self._value
            return at + 1
        return at + 1 if text[at] in _SPACE else None

    def _end(self, text: str, at: int) -> int | None:
        """After a value: what follows in the list or object that it is in."""
        if text[at] in _SPACE:
            return at + 1
        if not self._open:
            return None
        if text[at] == ",":
            self._next = self._key if self._open[-1] == "{" else self._value
        elif text[at] == _CLOSES[self._open[-1]]:
            self._open.pop()
            self._next = self._end
        else:
            return None
        return at + 1

    def _literal(self, text: str, at: int) -> int | None:
        if text[at] != self._left[0]:
            return None
        self._left = self._left[1:]
        if not self._left:
            self._next = self._end
        return at + 1

    def _number(self, text: str, at: int) -> int | None:
        part = _NUMBER[self._part].get(_KINDS.get(text[at], ""))
        if part is None:
            if self._part not in _COMPLETE:
                return None
            self._next = self._end
            return at
        self._part, self._num_digits = part, self._num_digits + 1
        return at + 1 if part != "int" or self._num_digits <= _MAX_DIGITS else None

    def _string(self, text: str, at: int) -> int | None:
        if self._is_low_due and text[at] != "\\":
            return None
        match = _PLAIN.match(text, at)
        assert match is not None
        if match.end() > at:
            return match.end()
        if text[at] == "\\":
            self._next = self._escape
        elif text[at] == '"':
            self._next = self._colon if self._is_key else self._end
        else:
            return None
        return at + 1

    def _escape(self, text: str, at: int) -> int | None:
        if text[at] == "u":
            self._digits, self._next = "", self._unicode
        elif text[at] in '"\\/bfnrt' and not self._is_low_due:
            self._next = self._string
        else:
            return None
        return at + 1

    def _unicode(self, text: str, at: int) -> int | None:
        if text[at] not in _HEX:
            return None
        self._digits += text[at]
        if len(self._digits) == 4:
            code = int(self._digits, 16)
            if (0xDC00 <= code < 0xE000) != self._is_low_due:
                return None
            self._is_low_due = 0xD800 <= code < 0xDC00
            self._next = self._string
        return at + 1


def _refuse(text: str, at: int) -> None:
    return None
