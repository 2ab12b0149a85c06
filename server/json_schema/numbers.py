"""Bounds of numbers in the form that the grammar compiler takes.

It reads them as doubles and writes them as digits, up to the largest 64-bit integer. Bounds that
exclude no double say nothing; others beyond that integer come down to it, which allows less than
the schema does, but nothing else.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

# Reports what cannot be enforced: the keyword, and why.
Report = Callable[[str, str], None]

_LARGEST = 2**63 - 1024  # the largest double below 2^63
_NINETEEN_DIGITS = 10**18  # an integer of as many digits must be bounded on both sides
_PAIRS = (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum"))
KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def bounds(schema: dict[str, Any], report: Report) -> dict[str, Any]:
    """The keywords about numbers, in a form that can be enforced."""
    given = {key: schema[key] for key in KEYWORDS if key in schema}
    for plain, exclusive in _PAIRS:
        is_draft_4 = isinstance(given.get(exclusive), bool)
        if is_draft_4 and given.pop(exclusive) and plain in given:
            given[exclusive] = given.pop(plain)
    for key, value in list(given.items()):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            report(key, "expected a number")
            del given[key]
    step = given.get("multipleOf")
    if step is not None and not step > 0:
        report("multipleOf", "expected a number above 0")
        del given["multipleOf"]
    is_integer = schema.get("type") == "integer"
    for keys, sign in zip(_PAIRS, (-1, 1), strict=True):
        for key in keys:
            if key in given:
                _bring_in(given, key, sign, is_integer, report)
    if is_integer:
        _close(given)
    return given


def _bring_in(given: dict[str, Any], key: str, sign: int, is_integer: bool, report: Report) -> None:
    """Brings one bound into the range; `sign` is 1 for an upper one."""
    outward = sign * given[key]  # how far out it is
    if outward >= sys.float_info.max:
        del given[key]
    elif outward > _LARGEST:
        given[key] = sign * _LARGEST
    elif outward < -_LARGEST:
        report(key, "numbers of more than 64 bits cannot be told apart")
        del given[key]
    elif is_integer and isinstance(given[key], int):
        given[key] = _inner(given[key], sign)


def _inner(bound: int, sign: int) -> int:
    """The nearest integer inside that is a double."""
    value = float(bound)
    while sign * int(value) > sign * bound:
        value = math.nextafter(value, -sign * math.inf)
    return int(value)


def _close(given: dict[str, Any]) -> None:
    """Bounds integers of nineteen digits on the other side."""
    for (plain, exclusive), (other, other_exclusive), sign in (
        (_PAIRS[0], _PAIRS[1], 1),
        (_PAIRS[1], _PAIRS[0], -1),
    ):
        values = [sign * given[key] for key in (plain, exclusive) if key in given]
        is_open = other not in given and other_exclusive not in given
        if is_open and max(values, default=0) >= _NINETEEN_DIGITS:
            given[other] = sign * _LARGEST


def is_exact(value: Any) -> bool:
    """Whether a constant is written as it is: its numbers are not rounded."""
    if isinstance(value, dict):
        return all(map(is_exact, value.values()))
    if isinstance(value, list):
        return all(map(is_exact, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return abs(value) <= _LARGEST and (value == 0 or abs(value) > 1e-15) and (float(value) == value)
