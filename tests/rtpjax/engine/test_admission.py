"""What is refused before it comes to a step, whoever calls."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from rtpjax.engine import admission
from rtpjax.engine.admission import MAX_PROMPT_SCORES, RANGES, SWITCHES, TEXTS, TOKENS
from rtpjax.engine.request import GenerationRequest, Grammar, ReasoningLimit, SamplingParams
from rtpjax.errors import RequestError
from tests.rtpjax.engine import tiny
from tests.rtpjax.engine.tiny import prompt

OF_REQUEST = {f.name for f in dataclasses.fields(GenerationRequest)}


@pytest.fixture
def engine(runner):
    return tiny.make_engine(runner)


def request(**fields: Any) -> GenerationRequest:
    own = {name: fields.pop(name) for name in list(fields) if name in OF_REQUEST}
    sampling = dataclasses.replace(tiny.GREEDY, **fields)
    return GenerationRequest(**{"request_id": "r", "prompt_token_ids": prompt(3)} | own, **(
        {} if "sampling" in own else {"sampling": sampling}
    ))  # fmt: skip


def test_every_field_is_checked():
    """A new field needs a range here before it can reach the devices."""
    names = {f.name for f in dataclasses.fields(SamplingParams)}
    of_sampling = {*RANGES, *TEXTS, *TOKENS, *SWITCHES, "logit_bias"} - OF_REQUEST
    assert names == of_sampling
    others = {"request_id", "prompt_token_ids", "sampling", "cache_salt"}
    checked = RANGES.keys() | {*SWITCHES}
    assert others | {"grammar", "reasoning_limit"} | (checked & OF_REQUEST) == OF_REQUEST


def bad_numbers() -> list[tuple[str, Any]]:
    cases: list[tuple[str, Any]] = []
    for name, allowed in RANGES.items():
        values = [math.nan, math.inf, -math.inf, allowed.low - 1, allowed.high * 2 + 1, 10**80]
        values += ["1", [1], True, 1j]
        values += [0.5] if allowed.is_whole else []
        values += [allowed.low] if allowed.is_open else []
        values += [] if allowed.is_optional else [None]
        cases += [(name, value) for value in values]
    return cases


BAD_TEXTS = ["stop", b"stop", 5, ("",), ("a", ""), ("\ud800",), (5,), (None,), ("a" * 1025,),
             ("a",) * 65]  # fmt: skip
BAD_TOKENS = [
    5,
    "5",
    (-1,),
    (300,),
    (2**31,),
    (10**80,),
    (1.5,),
    ("5",),
    (None,),
    tuple(range(300)) * 2,
]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *bad_numbers(),
        *((name, value) for name in SWITCHES for value in (None, "no", 2)),
        *((name, value) for name in TEXTS for value in BAD_TEXTS),
        *((name, value) for name, allowed in TOKENS.items() if not allowed.most_tokens
          for value in BAD_TOKENS),
        *((name, value) for name, allowed in TOKENS.items() if allowed.most_tokens
          for value in [*((bad,) for bad in BAD_TOKENS), ((),), ((5,), ()), ((5,),) * 200, 5]),
        *(("logit_bias", ((5, value),)) for value in (math.nan, math.inf, 101, "1", None)),
        *(("logit_bias", value) for value in (5, (5,), ((5,),), ((300, 1.0),), {5: 1.0})),
        *(("cache_salt", value) for value in ("\ud800", "a" * 257, 5, None, ("a",))),
        *(("request_id", value) for value in ("", 5, None)),
        *(("sampling", value) for value in (None, {"max_tokens": 3})),
        *(("grammar", value) for value in (
            "[ab]",
            Grammar("bnf"),  # type: ignore[arg-type]
            Grammar("regex", 5),  # type: ignore[arg-type]
            Grammar("regex", "a", after=""),
            Grammar("lark", "start: mark_0", marks=["a"]),  # type: ignore[arg-type]
            Grammar("lark", "start: mark_0", triggers=("",)),
            Grammar("regex", "a", instead=Grammar("regex", "b", instead=Grammar("regex", "c"))),
        )),
        ("reasoning_limit", 5),
        ("reasoning_limit", ReasoningLimit(5, "<think>", "")),
        *(("thinking_budget", ReasoningLimit(n, "<think>", "</think>")) for n in (-1, 1.5, None)),  # type: ignore[arg-type]
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_and_names_its_field(engine, name, value):
    field = "reasoning_limit" if name == "thinking_budget" else name
    with pytest.raises(RequestError) as refused:
        engine.add(request(**{field: value}))
    assert refused.value.param == name
    assert str(refused.value).startswith(f"{name}: ") or name in str(refused.value)
    assert len(str(refused.value)) < 400
    assert not engine.has_work


@pytest.mark.parametrize(
    "value", [5, "abc", (), (-1,), (300,), (10**80,), (1.5,), ("5",), (None,)], ids=repr
)
def test_prompts_that_are_no_tokens_are_refused(engine, value):
    with pytest.raises(RequestError) as refused:
        engine.add(request(prompt_token_ids=value))
    assert refused.value.param == "prompt"
    assert not engine.has_work


def test_an_id_in_use_is_refused(engine):
    engine.add(request())
    with pytest.raises(RequestError, match="'r' is in use") as refused:
        engine.add(request())
    assert refused.value.param == "request_id"
    assert len(tiny.run(engine)) == 1


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("end", ["low", "high"])
def test_the_ends_of_each_range_are_honoured(engine, name, end):
    allowed = RANGES[name]
    value = getattr(allowed, end)
    if allowed.is_open and end == "low":
        value = 1e-30
    fields = {name: value, **({"timeout_s": 0.0} if name == "arrived_s" else {})}
    engine.add(request(**fields))
    [outputs] = tiny.run(engine).values()
    assert outputs[-1].finish_reason in ("length", "error")
    assert outputs[-1].error_kind in ("engine", "timeout")
    assert engine.failure is None
    assert (outputs[-1].error is None) == (outputs[-1].error_kind == "engine")


def test_lists_are_taken_as_well_as_tuples(engine):
    fields = {"prompt_token_ids": [5, 6], "stop": ["abc"], "stop_token_ids": [299]}
    engine.add(request(**fields, bad_words=[[7, 8]], allowed_token_ids=[], stop_sequences=[[9, 9]]))
    [outputs] = tiny.run(engine).values()
    assert outputs[-1].error is None


def test_the_scores_of_a_long_prompt_are_bounded():
    long = tuple([5] * (MAX_PROMPT_SCORES // 2))

    def check(prompt_token_ids, **options):
        asked = request(prompt_token_ids=prompt_token_ids, **options)
        admission.check_request(asked, 1 << 20, tiny.NUM_TOKENS, [tiny.END])

    check(long, prompt_logprobs=1)
    check(long[:10_000], prompt_logprobs=20)
    with pytest.raises(RequestError, match="at most 1") as refused:
        check(long, prompt_logprobs=2)
    assert refused.value.param == "prompt_logprobs"
    with pytest.raises(RequestError, match="shorten the prompt"):
        check(long * 3, prompt_logprobs=0)
