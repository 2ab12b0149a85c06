"""Where the text of callers that may become control tokens stands in a rendered prompt."""

from __future__ import annotations

import html
import json
import re
import urllib.parse
from collections.abc import Callable, Iterator
from functools import partial

from server.control_tokens import Span
from server.masks import Masks


def _json(text: str, *, is_ascii: bool) -> str:
    return json.dumps(text, ensure_ascii=is_ascii)[1:-1]


def _as_it_is(text: str) -> str:
    return text


def _repr(text: str) -> str:
    return repr(text)[1:-1]


# What templates do to texts that changes a mask, too, and how a mask looks then ...
_ESCAPES: tuple[Callable[[str], str], ...] = (
    _as_it_is,
    partial(_json, is_ascii=True),
    _repr,
    urllib.parse.quote,
)
_UNITS = (
    "[\U000f0000-\U0010fffd]",
    r"\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}",
    r"\\U00(?:0f|10)[0-9a-f]{4}",
    "%F[34](?:%[0-9A-F]{2}){3}",
)
_RUN = re.compile("|".join(rf"({unit})\{number}*" for number, unit in enumerate(_UNITS, 1)))
# ... and what changes only the text.
_FORMS = (partial(_json, is_ascii=False), html.escape, partial(_json, is_ascii=True), _repr)


def located(exact: str, masked: str, masks: Masks) -> tuple[str, list[Span]]:
    """The text of a prompt, and where callers' masked texts stand in it.

    Args:
        exact: As the template renders it.
        masked: As it renders the request with masks.
        masks: Those.

    Returns:
        The exact text. Where the template itself takes a caller's marks for its own, so that the
        two differ in more than the masks, the text in which it takes them for other text.
    """
    spans: list[Span] | None = []
    at = 0
    unmasked: list[str] = []
    unmasked_spans: list[Span] = []
    unmasked_len = 0
    for literal, forms in _pieces(masked, masks):
        form = forms[0]
        found = next((f for f in forms if exact.startswith(f, at + len(literal))), None)
        if spans is None or found is None or not exact.startswith(literal, at):
            spans = None
        else:
            at += len(literal) + len(found)
            spans.append((at - len(found), at))
        unmasked += [literal, form]
        unmasked_len += len(literal) + len(form)
        unmasked_spans.append((unmasked_len - len(form), unmasked_len))
    if spans is not None and at == len(exact):
        return exact, [span for span in spans if span[0] < span[1]]
    return "".join(unmasked), [span for span in unmasked_spans if span[0] < span[1]]


def _pieces(masked: str, masks: Masks) -> Iterator[tuple[str, list[str]]]:
    """Literal text, and the forms that the text of the mask after it may have."""
    known = {escape(char): (char, escape) for escape in _ESCAPES for char in masks.texts}
    at = 0
    for run in _RUN.finditer(masked):
        unit = run[run.lastindex or 0]
        if unit not in known:
            continue
        char, escape = known[unit]
        text = masks.texts[char]
        # One character for each of the text's, of which a template may have cut some.
        num_left = len(run[0]) // len(unit)
        literal, at = masked[at : run.start()], run.end()
        while num_left > 0:
            form = escape(text[:num_left])
            others = [change(form) for change in _FORMS] if escape is _as_it_is else []
            yield literal, [form, *others]
            literal, num_left = "", num_left - len(text)
    yield masked[at:], [""]
