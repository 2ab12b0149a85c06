"""When the end of the reasoning is forced, over tokens of one or more characters."""

from __future__ import annotations

import pytest

from rtpjax.engine.reasoning import ReasoningClock
from rtpjax.engine.request import ReasoningLimit

# Token ids are places in this list.
TOKENS = [b"<think>", b"</", b"think>", b"a", b"b", b"\n", b"\xe6", b"\xbc", b"\xa2", b"<", b"thi",
          b"nk>", b"<|a|>", b"<|e|>"]  # fmt: skip
OPEN, A, B, BREAK = 0, 3, 4, 5
CLOSING = (1, 2)


def forced(limit: ReasoningLimit, written: list[int], closing: tuple[int, ...] = CLOSING):
    """What is forced before the first token and after each one."""
    clock = ReasoningClock(limit, closing, TOKENS.__getitem__)
    found = [clock.forced_id]
    for token_id in written:
        assert clock.forced_id in (None, token_id)
        clock.see(token_id)
        found.append(clock.forced_id)
    return found


def think(max_tokens: int, *, is_open: bool = True) -> ReasoningLimit:
    return ReasoningLimit(max_tokens, "<think>", "</think>", is_open=is_open)


def test_the_mark_is_forced_after_so_many_tokens() -> None:
    assert forced(think(3), [A, B, A, 1, 2, A, B]) == [None, None, None, 1, 2, None, None, None]


def test_zero_closes_at_once() -> None:
    assert forced(think(0), [1, 2, A]) == [1, 2, None, None]


def test_reasoning_that_ends_by_itself_is_left_alone() -> None:
    assert forced(think(4), [A, 1, 2, A, A, A, A, A]) == [None] * 9


def test_reasoning_that_opens_in_the_answer() -> None:
    limit = think(2, is_open=False)
    assert forced(limit, [OPEN, A, B, 1, 2, A]) == [None, None, None, 1, 2, None, None]
    assert forced(limit, [BREAK, 9, 10, 11, A, B]) == [None] * 6 + [1]  # the mark in pieces
    assert forced(think(0, is_open=False), [OPEN, 1, 2]) == [None, 1, 2, None]


def test_an_answer_without_reasoning_has_no_limit() -> None:
    assert forced(think(2, is_open=False), [A, OPEN, A, B, A, B]) == [None] * 7


def test_a_character_is_not_cut() -> None:
    assert forced(think(1), [6, 7, 8, 1, 2]) == [None, None, None, 1, 2, None]


@pytest.mark.parametrize("reopens", [False, True])
def test_reasoning_may_open_again(reopens: bool) -> None:
    limit = ReasoningLimit(2, "<|a|>", "<|e|>", reopens=reopens)
    found = forced(limit, [12, A, 13, A, 12, A, *([13] * reopens)], (13,))
    assert found == [None] * 6 + ([13, None] if reopens else [None])
