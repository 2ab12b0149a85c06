"""The engine with a limit on reasoning: alone, with grammars, preempted, and beside others."""

from __future__ import annotations

import json
import re

import pytest

from rtpjax.engine.request import (
    GenerationRequest,
    Grammar,
    ReasoningLimit,
    RequestOutput,
    SamplingParams,
)
from tests.e2e import byte_model

CLOSES = "</think>"
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
JSON = Grammar("json_schema", json.dumps(SCHEMA), after=CLOSES)
PROMPT = byte_model.encode("a prompt <think>")


def limit(max_tokens: int, closes: str = CLOSES) -> ReasoningLimit:
    return ReasoningLimit(max_tokens, "<think>", closes, is_open=True)


def run(engine, requests: list[GenerationRequest]) -> list[list[RequestOutput]]:
    outputs: dict[str, list[RequestOutput]] = {}
    for request in requests:
        engine.check(request)
        engine.add(request)
        outputs[request.request_id] = []
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id].append(output)
    assert byte_model.runner().num_recompiles == 0
    return list(outputs.values())


def request(number: int, max_tokens: int | None, grammar: Grammar | None, **sampling):
    params = SamplingParams(
        temperature=1.5, seed=number, max_tokens=120, ignore_eos=True, **sampling
    )
    reasoning = None if max_tokens is None else limit(max_tokens)
    return GenerationRequest(
        f"r{number}", PROMPT, params, grammar=grammar, reasoning_limit=reasoning
    )


def tokens_of(outputs: list[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def text_of(outputs: list[RequestOutput]) -> str:
    return "".join(output.text for output in outputs)


@pytest.mark.parametrize("max_tokens", [0, 1, 2, 7, 30])
def test_the_reasoning_has_at_most_so_many_tokens(max_tokens: int) -> None:
    closing = list(byte_model.encode(CLOSES))
    [outputs] = run(byte_model.make_engine(), [request(1, max_tokens, None)])
    tokens = tokens_of(outputs)
    # (Random bytes: a character may be completed first.)
    at = next(i for i in range(len(tokens)) if tokens[i : i + len(closing)] == closing)
    assert max_tokens <= at <= max_tokens + 3
    assert len(tokens) == 120
    assert text_of(outputs).count(CLOSES) == 1


def test_what_comes_before_is_what_it_would_have_been() -> None:
    """The limit changes nothing before it is reached; a seed repeats its tokens after it."""
    engine = byte_model.make_engine()
    [free] = run(engine, [request(3, None, None)])
    [limited] = run(engine, [request(3, 20, None)])
    assert tokens_of(limited)[:20] == tokens_of(free)[:20]
    [again] = run(engine, [request(3, 20, None)])
    assert tokens_of(again) == tokens_of(limited)


def test_the_grammar_follows_the_forced_end() -> None:
    requests = [request(i, i % 9, JSON) for i in range(12)]
    results = run(byte_model.make_engine(), requests)
    for outputs in results:
        assert outputs[-1].finish_reason == "stop", outputs[-1]
        reasoning, _, answer = text_of(outputs).partition(CLOSES)
        assert len(reasoning.encode()) <= 40
        assert 0 <= json.loads(answer)["n"] <= 99


def test_neighbours_and_preemption_change_nothing() -> None:
    """With few pages the latest requests are preempted and start again."""

    def several() -> list[GenerationRequest]:
        return [request(i, 5 * i if i % 3 else None, JSON if i == 4 else None) for i in range(8)]

    alone = [run(byte_model.make_engine(), [r])[0] for r in several()]
    engine = byte_model.make_engine(num_pages=14)
    together = run(engine, several())
    assert engine.stats().num_preemptions > 0
    assert [tokens_of(o) for o in together] == [tokens_of(o) for o in alone]


def test_a_special_token_is_the_mark() -> None:
    made = GenerationRequest(
        "r", PROMPT, SamplingParams(temperature=1.5, seed=1, max_tokens=30, ignore_eos=True),
        reasoning_limit=limit(4, "<|mark|>"),
        grammar=Grammar("regex", "[ab]{3}", after="<|mark|>"),
    )  # fmt: skip
    [outputs] = run(byte_model.make_engine(), [made])
    tokens = tokens_of(outputs)
    assert byte_model.token_id("<|mark|>") in tokens[:8]
    assert re.search("[ab]{3}$", text_of(outputs))
