"""The engine with grammars: masks, neighbours, look-ahead, ends, and failures."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from concurrent.futures import Future

import numpy as np
import pytest
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from rtpjax.engine.constraint import Constraint
from rtpjax.engine.request import GenerationRequest, Grammar, RequestOutput, SamplingParams
from rtpjax.errors import RequestError
from tests.e2e import byte_model
from tests.rtpjax.engine import tiny

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 20}, "n": {"type": "integer"}},
    "required": ["a", "n"],
    "additionalProperties": False,
}
JSON = Grammar("json_schema", json.dumps(SCHEMA))
CALL = Grammar(
    "structural_tag",
    json.dumps([{"trigger": "<t>", "begin": "<t>{", "schema": SCHEMA, "end": "}</t>"}]),
)
HOT = SamplingParams(temperature=1.5, seed=3, max_tokens=400)
PROMPT = byte_model.encode("some prompt")


@pytest.fixture
def engine():
    yield byte_model.make_engine()
    assert byte_model.runner().num_recompiles == 0


def text_of(outputs: list[RequestOutput]) -> str:
    return "".join(output.text for output in outputs)


def run_one(engine, grammar: Grammar | None, sampling: SamplingParams = HOT):
    """Text, finish reason and tokens of one request."""
    [outputs] = engine.generate([PROMPT], sampling, [grammar])
    tiny.assert_ends_once(outputs)
    return text_of(outputs), outputs[-1].finish_reason, tiny.tokens_of(outputs)


def test_only_tokens_that_the_grammar_allows_are_sampled_and_its_end_ends(engine):
    text, reason, tokens = run_one(engine, JSON)
    assert (json.loads(text).keys(), reason) == ({"a", "n"}, "stop")
    matcher = engine.grammars.compile(JSON).grammar.matcher.deep_copy()
    mask = allocate_token_bitmask(1, len(byte_model.tokenizer()))
    for token_id in tokens:
        fill_next_token_bitmask(matcher, mask)
        assert mask[0, token_id // 32] >> (token_id % 32) & 1
        assert matcher.consume_token(token_id)
    assert matcher.is_stopped()


def test_the_masks_on_the_device_are_those_of_the_matcher(engine, monkeypatch):
    seen = []
    choose = engine._runner.choose

    def checked(forwarded, masks):
        handle = choose(forwarded, masks)
        on_device = np.asarray(engine._runner._state.masks)
        owners = {at: row.sequence for row, places in forwarded.batch.rows for at in places}
        for place in masks:
            sequence = owners[place]
            expected = allocate_token_bitmask(1, len(byte_model.tokenizer()))
            fill_next_token_bitmask(sequence.constraint._matcher, expected)
            np.testing.assert_array_equal(on_device[sequence.slot], expected[0])
            seen.append(sequence.slot)
        return handle

    monkeypatch.setattr(engine._runner, "choose", checked)
    each = [dataclasses.replace(HOT, seed=i, max_tokens=60) for i in range(6)]
    engine.generate([PROMPT] * 6, each, [JSON, Grammar("json_object")] * 3)
    assert len(set(seen)) == 6


def test_neighbours_of_a_constrained_row_get_the_same_tokens(engine):
    prompts = [byte_model.encode(f"prompt {i}") for i in range(6)]
    each = [dataclasses.replace(HOT, seed=i, max_tokens=40, logprobs=2) for i in range(6)]
    alone = engine.generate(prompts, each)
    grammars = [None, JSON, None, None, CALL, None]
    together = engine.generate(prompts, each, grammars)
    for i, grammar in enumerate(grammars):
        if grammar is None:
            assert tiny.tokens_of(together[i]) == tiny.tokens_of(alone[i])


def test_constrained_tokens_do_not_depend_on_timing(engine, monkeypatch):
    each = [dataclasses.replace(HOT, seed=i, max_tokens=120) for i in range(6)]
    grammars = [
        JSON,
        None,
        Grammar("json_object"),
        CALL,
        dataclasses.replace(JSON, after="e"),
        None,
    ]
    found = []
    fill = Constraint._fill
    for mask_s in (0.0, 0.02):  # the latter is later than the engine waits

        def slow(self, mask_s=mask_s):
            time.sleep(mask_s)
            return fill(self)

        monkeypatch.setattr(Constraint, "_fill", slow)
        results = engine.generate([PROMPT] * 6, each, grammars)
        found.append([tiny.tokens_of(outputs) for outputs in results])
        alone = [engine.generate([PROMPT], [s], [g]) for s, g in zip(each, grammars, strict=True)]
        found.append([tiny.tokens_of(outputs) for [outputs] in alone])
    assert found[0] == found[1] == found[2] == found[3]


def test_preemption_keeps_the_place_in_the_grammar(engine):
    each = [dataclasses.replace(HOT, seed=i, max_tokens=150) for i in range(8)]
    grammars = [JSON, CALL, dataclasses.replace(JSON, after="e"), None] * 2
    expected = engine.generate([PROMPT] * 8, each, grammars)
    crowded = byte_model.make_engine(num_pages=1 + 8)
    found = crowded.generate([PROMPT] * 8, each, grammars)
    assert crowded.stats().num_preemptions > 0
    assert list(map(tiny.tokens_of, found)) == list(map(tiny.tokens_of, expected))


def test_everything_else_that_a_request_may_ask_for(engine):
    brace = byte_model.token_id("{")
    every = dataclasses.replace(
        HOT,
        repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2, min_tokens=300,
        logit_bias=((brace, -100.0), (byte_model.end_id(), 100.0)), top_k=50, top_p=0.9, min_p=0.01,
        logprobs=3,
    )  # fmt: skip
    for sampling in (every, dataclasses.replace(HOT, ignore_eos=True), tiny.params(max_tokens=400)):
        text, reason, _ = run_one(engine, JSON, sampling)
        if sampling.temperature:
            assert (json.loads(text).keys(), reason) == ({"a", "n"}, "stop")
        else:
            assert text.lstrip().startswith("{")
    text, reason, tokens = run_one(engine, JSON, dataclasses.replace(HOT, max_tokens=5))
    assert (reason, len(tokens)) == ("length", 5)
    text, reason, _ = run_one(engine, JSON, dataclasses.replace(HOT, stop=('"n"',)))
    assert reason == "stop"
    assert text.endswith((",", ", ", " ", "\n"))


def test_choices_with_other_seeds_differ_and_share_the_compiled_grammar(engine):
    each = [dataclasses.replace(HOT, seed=i) for i in (1, 2, 1)]
    found = [text_of(o) for o in engine.generate([PROMPT] * 3, each, [JSON] * 3)]
    assert found[0] == found[2] != found[1]
    compiled = engine.grammars.compile(JSON)
    assert engine.grammars.compile(dataclasses.replace(JSON)) is compiled


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar("regex", "(yes|no){1,3}"), "(yes|no){1,3}"),
        (Grammar("lark", 'start: "a" ("b" | "c")~2 "d"'), "a[bc]{2}d"),
        (Grammar("ebnf", 'root ::= "x" [0-9] [0-9] tail\ntail ::= "." | "!"'), "x[0-9]{2}[.!]"),
        (Grammar("regex", "é漢?"), "é漢?"),
    ],
)
def test_other_kinds_of_grammar(engine, grammar, pattern):
    each = [dataclasses.replace(HOT, seed=i) for i in range(8)]
    for outputs in engine.generate([PROMPT] * 8, each, [grammar] * 8):
        assert outputs[-1].finish_reason == "stop"
        assert re.fullmatch(pattern, text_of(outputs))


BIAS = tuple((byte_model.token_id(c), 7.0) for c in "<t>")


def test_a_call_is_constrained_from_where_it_opens_and_text_is_free(engine):
    # Biased, so that random text opens calls.
    each = [dataclasses.replace(HOT, seed=i, max_tokens=300, logit_bias=BIAS) for i in range(30)]
    found = [text_of(o) for o in engine.generate([PROMPT] * 30, each, [CALL] * 30)]
    free = [text_of(o) for o in engine.generate([PROMPT] * 30, each)]
    opened = num_whole = 0
    for text, unconstrained in zip(found, free, strict=True):
        before, _, rest = text.partition("<t>")
        # Inside of a character the grammar asks for valid UTF-8; until then text is the same.
        same = next((i for i, c in enumerate(unconstrained) if not c.isascii()), len(before))
        assert unconstrained.startswith(before[:same])
        opened += bool(rest)
        num_whole += _check_calls(text)
    assert opened > 3
    assert num_whole > 0


def _check_calls(text: str) -> int:
    """Every call in a text is well formed as far as it goes; returns how many are whole."""
    num_whole = at = 0
    while (at := text.find("<t>", at)) >= 0:
        at += len("<t>{")
        assert text[at - 1 : at] in ("", "{")
        try:
            call, at = json.JSONDecoder().raw_decode(text, at)
        except json.JSONDecodeError:
            break  # max_tokens cut it
        assert call.keys() == {"a", "n"}
        assert "}</t>".startswith(text[at : at + 5])
        num_whole += 1
    return num_whole


@pytest.mark.parametrize("after", ["e", "<|mark|>"])
def test_a_grammar_may_start_after_a_text_or_a_special_token(engine, after):
    bias = ((byte_model.token_id(after), 2.0), (byte_model.end_id(), 4.0))
    grammar = dataclasses.replace(JSON, after=after)
    sampling = dataclasses.replace(HOT, logit_bias=bias, skip_special_tokens=False)
    for seed in range(6):
        text, reason, _ = run_one(engine, grammar, dataclasses.replace(sampling, seed=seed))
        reasoning, found, answer = text.partition(after)
        assert found, "the end may not come before it"
        assert byte_model.SPECIAL[0] not in reasoning
        assert reason == "stop"
        assert json.loads(answer.removesuffix(byte_model.SPECIAL[0])).keys() == {"a", "n"}


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar("json_schema", '{"type": "frob"}'), "frob"),
        (Grammar("json_schema", '{"type": "array", "uniqueItems": true}'), "uniqueItems"),
        (Grammar("json_schema", "{"), "cannot be read"),
        (Grammar("json_schema", "3"), "cannot be read"),
        (Grammar("json_schema", '{"minimum": 3, "maximum": 2, "type": "integer"}'), "[Uu]nsatisf"),
        (Grammar("regex", "(a"), "regex"),
        (Grammar("regex", "(" * 200 + ")" * 200), "nested 200 deep"),
        (Grammar("regex", "a" * 300_000), "300000 characters"),
        (Grammar("lark", "start: nothing"), "nothing"),
        (Grammar("lark", "\n".join(f'r{i}: "a" r{i + 1}' for i in range(2000))), "1999 rules"),
        (Grammar("ebnf", "root := ???"), "cannot be read"),
    ],
)
def test_what_cannot_be_compiled_is_refused_and_the_engine_goes_on(engine, grammar, message):
    grammar = dataclasses.replace(grammar, param="some.field")
    with pytest.raises(RequestError, match=message) as caught:
        engine.generate([PROMPT], HOT, [grammar])
    assert caught.value.param == "some.field"
    assert len(str(caught.value)) < 400
    assert not engine.has_work
    assert run_one(engine, JSON)[1] == "stop"


def test_a_mask_that_fails_ends_its_request_and_no_other(engine, monkeypatch):
    engine.grammars.compile(JSON)
    engine.add(GenerationRequest("fails", PROMPT, HOT, grammar=JSON))
    engine.add(GenerationRequest("goes on", PROMPT, HOT, grammar=JSON))
    engine.step()
    constraint = engine._constrained["fails"].constraint

    def fill():
        raise RuntimeError("too complex")

    monkeypatch.setattr(constraint, "_fill", fill)
    ended = {k: parts[-1] for k, parts in tiny.run(engine).items()}
    assert ended["fails"].finish_reason == "error"
    assert "too complex" not in ended["fails"].error
    assert ended["goes on"].finish_reason == "stop"
    assert engine.stats().num_free_pages == engine.stats().num_pages


def test_a_mask_may_become_ready_while_the_engine_looks_at_it(engine, monkeypatch):
    engine.grammars.compile(JSON)
    engine.add(GenerationRequest("r", PROMPT, HOT, grammar=JSON))
    ready: Future[np.ndarray] = Future()
    ready.set_result(np.zeros(1, np.int32))
    answers = iter([ready] + [None] * 9)
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(Constraint, "pending", property(lambda self: next(answers)))
        engine._await_masks([engine._constrained["r"].constraint], 0.01)
    assert tiny.run(engine)["r"][-1].finish_reason == "stop"
