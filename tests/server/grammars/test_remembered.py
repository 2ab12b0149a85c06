"""Grammars of calls are made once for the same functions, and again for others."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from rtpjax.engine.request import Grammar
from server.function_calls import CallOptions, Function
from server.grammars.calls import CallStyle
from server.grammars.remembered import Remembered
from server.tool_parsers import tool_formats

DEFINITION: dict[str, Any] = {
    "name": "f",
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
}


def options(definition: dict[str, Any] = DEFINITION, **said: Any) -> CallOptions:
    return CallOptions((Function(copy.deepcopy(definition)),), **said)


def test_equal_functions_have_one_grammar() -> None:
    style = CallStyle.of(tool_formats()["hermes"], "")
    assert style.forced(options()) is style.forced(options())
    assert style.auto(options()) is style.auto(options())


OTHER = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    "other",
    [
        options(DEFINITION | {"name": "g"}),
        options(DEFINITION | {"parameters": OTHER}),
        options(is_parallel=False),
        options(dialect="functions"),
        options(choice="required", named="f"),
    ],
)
def test_what_differs_is_made_anew(other: CallOptions) -> None:
    assert other.digest != options().digest
    style = CallStyle.of(tool_formats()["hermes"], "")
    assert style.forced(options()) is not style.forced(other)


def test_formats_and_beginnings_differ() -> None:
    styles = [CallStyle.of(tool_formats()[name], "") for name in ("hermes", "mistral")]
    first, second = (style.forced(options()) for style in styles)
    assert first.text != second.text
    assert styles[0].forced(options(), after="</think>") == replace(first, after="</think>")
    assert styles[0].auto(options()) != first


def test_bounded() -> None:
    kept, made = Remembered(max_chars=30_000), list[int]()

    def grammar_of(number: int) -> Grammar:
        def make() -> Grammar:
            made.append(number)
            return Grammar("lark", "x" * 9_000)

        return kept.get(number, make)

    for number in (1, 2, 3, 1, 2, 3):
        grammar_of(number)
    assert made == [1, 2, 3]
    grammar_of(4)  # 1 was used least recently
    grammar_of(2)
    grammar_of(1)
    assert made == [1, 2, 3, 4, 1]


def test_what_fails_is_not_kept() -> None:
    kept = Remembered()

    def fail() -> bool:
        raise ValueError

    with pytest.raises(ValueError):
        kept.get("key", fail)
    assert kept.get("key", lambda: True)
