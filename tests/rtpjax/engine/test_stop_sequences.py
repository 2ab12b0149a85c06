"""Stop sequences of tokens against a plain search of the whole output, and in the text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtpjax.engine.detokenizer import Detokenizer
from rtpjax.engine.stop_sequences import StopSequences
from tests.examples import num_examples
from tests.rtpjax.engine import tiny

TOKENS = st.lists(st.integers(3, 6), max_size=14)
SEQUENCES = st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=4), min_size=1, max_size=3)


def expected(tokens: list[int], stops: list[list[int]], min_tokens: int) -> tuple[list[int], list]:
    """The tokens before the first stop that is complete, the longest one, and that stop."""
    for end in range(1, len(tokens) + 1):
        found = [s for s in stops if tokens[:end][-len(s) :] == s]
        if found and end >= min_tokens:
            stop = max(found, key=len)
            return tokens[: end - len(stop)], stop
    return tokens, []


@settings(max_examples=num_examples(500))
@given(tokens=TOKENS, stops=SEQUENCES, min_tokens=st.integers(0, 5))
def test_finds_what_a_search_finds(tokens, stops, min_tokens):
    follower = StopSequences([tuple(stop) for stop in stops], min_tokens)
    text, stop = [], ()
    for count, token_id in enumerate(tokens):
        certain, stop = follower.push(token_id)
        text += certain
        if stop:
            break
        # Nothing is held back that cannot become a stop.
        held = tokens[len(text) : count + 1]
        assert not held or any(held == s[: len(held)] for s in stops)
    text += follower.finish()
    assert (text, list(stop)) == expected(tokens, stops, min_tokens)


@settings(max_examples=num_examples(200))
@given(tokens=TOKENS, stops=SEQUENCES, push_len=st.integers(1, 4), is_kept=st.booleans())
def test_text_before_a_stop_is_kept(tokens, stops, push_len, is_kept):
    detokenizer = Detokenizer(
        tiny.tokenizer(),
        stop_sequences=[tuple(stop) for stop in stops],
        include_stop_str_in_output=is_kept,
    )
    pushes = [tokens[i : i + push_len] for i in range(0, len(tokens), push_len)]
    text = "".join([detokenizer.push(push) for push in pushes] + [detokenizer.finish()])
    before, stop = expected(tokens, stops, 0)
    assert text == tiny.text_of([*before, *(stop if is_kept else ())])
    assert detokenizer.stop_reason == (tiny.text_of(stop) if stop else None)


def test_a_stop_string_before_a_stop_sequence_wins():
    detokenizer = Detokenizer(tiny.tokenizer(), stop=(" 7",), stop_sequences=[(8, 9)])
    assert detokenizer.push([5, 7, 8, 9]) + detokenizer.finish() == " 5"
    assert detokenizer.stop_reason == " 7"


@pytest.mark.parametrize("ending", [(8, 9), (8,)])
def test_what_is_held_back_comes_at_the_end(ending):
    detokenizer = Detokenizer(tiny.tokenizer(), stop_sequences=[(*ending, 10)])
    assert detokenizer.push([5, *ending]) == " 5"
    assert detokenizer.finish() == tiny.text_of(ending)
    assert detokenizer.stop_reason is None
