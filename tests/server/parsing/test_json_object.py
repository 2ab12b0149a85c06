"""Text that comes in pieces is the beginning of an object exactly as far as it can be one."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json

from server.answer_items import object_of
from server.parsing.json_object import ObjectBeginning
from tests.examples import num_examples

VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=6,
)  # fmt: skip
PIECES = (
    *'{}[]:,"\\u-.eE+ \n\x01é', "0", "12", "true", "nul", "false", "N", "NaN", "Infinity", '"a":',
    "\\ud83d", "\\ude00", "00e9", "\\n", "\\x", "[1, ", '{"b": ', "1" * 4300, '{"a":' * 50,
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map(lambda parts: "{" + "".join(parts))


def taken(pieces: list[str]) -> int:
    beginning = ObjectBeginning()
    return sum(beginning.take(piece) for piece in pieces)


@given(VALUES, st.booleans(), st.data())
@settings(max_examples=num_examples(300))
def test_every_beginning_of_an_object_is_one(value: Any, is_ascii: bool, data: Any) -> None:
    text = json.dumps({"a": value}, ensure_ascii=is_ascii, allow_nan=False)
    at = data.draw(st.integers(0, len(text)))
    assert taken([text[:at], text[at:]]) == len(text)
    assert object_of(text) == {"a": value}
    assert isinstance(object_of(text[:at]), dict)


@given(TEXTS)
@settings(max_examples=num_examples(500))
@example('{"a": "\\ud83d"}')
@example('{"a": 01}')
@example('{"a": [1,]}')
@example('{"a": 1, }')
@example("{} ,")
@example('{"a": -}')
@example('{"a": 1.}')
def test_what_is_taken_is_json_and_what_is_refused_is_not(text: str) -> None:
    length = taken([text])
    # The parser that reads all of a call's arguments in the end takes what was taken here.
    assert isinstance(from_json(text[:length].encode(), allow_partial=True), dict)
    try:
        value = json.loads(text)
        text.encode(), json.dumps(value, ensure_ascii=False).encode()
        is_object = isinstance(value, dict) and "NaN" not in text and "Infinity" not in text
    except ValueError:
        is_object = False
    if length < len(text):
        assert not is_object
    elif is_object:
        assert object_of(text) == value
    elif text.rstrip().endswith("}"):  # it is not complete: something more can make it an object
        assert any(taken([text + end]) > len(text) for end in ('"', "}", "]", ",", ":", "0"))


@given(TEXTS, st.data())
def test_it_does_not_matter_how_a_text_is_cut(text: str, data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert taken(pieces) == taken([text])
