"""What a schema says about strings besides their length."""

from __future__ import annotations

from typing import Any

from server.json_schema.numbers import Report

FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
)  # checked by the grammar

# The compiler's own dates have a year 0 and a 30th of February.
_YEAR = r"(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_DIVISIBLE_BY_4 = r"(0[48]|[2468][048]|[13579][26])"
_DATE = (
    rf"({_YEAR}-((01|03|05|07|08|10|12)-(0[1-9]|[12][0-9]|3[01])"
    r"|(04|06|09|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    rf"|([0-9]{{2}}{_DIVISIBLE_BY_4}|{_DIVISIBLE_BY_4}00)-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_ZONE = r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}{_ZONE}$",
    "date-time": f"^{_DATE}T{_TIME}{_ZONE}$",
}


def format_of(schema: dict[str, Any], report: Report) -> dict[str, Any]:
    """The keywords `pattern` and `format`, in a form that can be enforced."""
    new: dict[str, Any] = {}
    pattern, name = schema.get("pattern"), schema.get("format")
    if isinstance(pattern, str):
        new["pattern"] = pattern
    elif "pattern" in schema:
        report("pattern", "expected a regular expression")
    if isinstance(name, str) and name in FORMATS:
        if name in _PATTERNS and "pattern" not in new:
            new["pattern"] = _PATTERNS[name]
        else:
            new["format"] = name
    return new
