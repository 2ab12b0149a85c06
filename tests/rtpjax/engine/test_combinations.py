"""What one request may ask for at once: grammars, allowed tokens, prompt scores, preemption."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

from rtpjax.engine.request import GenerationRequest, Grammar, ReasoningLimit, SamplingParams
from tests.e2e import byte_model
from tests.rtpjax.engine import tiny

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 60}},
    "required": ["a"],
    "additionalProperties": False,
}
JSON = Grammar("json_schema", json.dumps(SCHEMA))
HOT = SamplingParams(temperature=1.5, max_tokens=150)
PROMPTS = [byte_model.encode(f"prompt {'long ' * i}number {i}") for i in range(8)]


@pytest.fixture(autouse=True)
def nothing_is_compiled():
    yield
    assert byte_model.runner().num_recompiles == 0


def test_prompt_scores_and_grammars_under_preemption():
    """A prompt is scored once, also where its request starts again, and its answer is the same."""
    each = [
        dataclasses.replace(HOT, seed=i, prompt_logprobs=2 if i % 2 else None) for i in range(8)
    ]
    grammars = [JSON if i < 6 else None for i in range(8)]
    roomy = byte_model.make_engine()
    expected = roomy.generate(PROMPTS, each, grammars)
    assert roomy.stats().num_preemptions == 0
    crowded = byte_model.make_engine(num_pages=1 + 12)
    found = crowded.generate(PROMPTS, each, grammars)
    assert crowded.stats().num_preemptions > 0
    for i, (outputs, wanted) in enumerate(zip(found, expected, strict=True)):
        assert tiny.tokens_of(outputs) == tiny.tokens_of(wanted)
        scored = [output.prompt_logprobs for output in outputs if output.prompt_logprobs]
        assert len(scored) == i % 2
        if scored:
            entries, known = scored[0][1:], wanted[0].prompt_logprobs[1:]
            assert [entry.token_id for entry in entries] == list(PROMPTS[i][1:])
            np.testing.assert_allclose(
                [e.logprob for e in entries], [e.logprob for e in known], atol=1e-4
            )
    for outputs in found[:6]:
        text = "".join(output.text for output in outputs)
        if outputs[-1].finish_reason == "stop":
            assert json.loads(text).keys() == {"a"}


def test_scores_beside_a_grammar_are_those_without_one():
    sampling = dataclasses.replace(HOT, seed=1, prompt_logprobs=1)
    engine = byte_model.make_engine()
    with_one, without = engine.generate([PROMPTS[7]] * 2, [sampling] * 2, [JSON, None])
    for entry, other in itertools.islice(
        zip(with_one[0].prompt_logprobs, without[0].prompt_logprobs, strict=True), 1, None
    ):
        assert entry.token_id == other.token_id
        np.testing.assert_allclose(entry.logprob, other.logprob, atol=1e-4)


def test_allowed_tokens_narrow_a_grammar():
    """Only what both allow comes: of all digits two, and the end where the grammar may end."""
    digits = Grammar("regex", "[0-9]{1,8}")
    allowed = (*map(byte_model.token_id, "47x"), byte_model.end_id())
    each = [dataclasses.replace(HOT, seed=i, allowed_token_ids=allowed) for i in range(16)]
    engine = byte_model.make_engine()
    found = engine.generate([PROMPTS[0]] * 16, each, [digits] * 16)
    texts = ["".join(output.text for output in outputs) for outputs in found]
    assert set("".join(texts)) == {"4", "7"}
    assert all(1 <= len(text) <= 8 for text in texts)
    assert {outputs[-1].finish_reason for outputs in found} == {"stop"}
    assert len({len(text) for text in texts}) > 1
    free = engine.generate([PROMPTS[0]] * 8, each[:8])
    assert "x" in "".join(output.text for outputs in free for output in outputs)


def failure(outputs):
    """The kind and field of the error that a request ends with, and its text."""
    assert [o.finish_reason for o in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert outputs[-1].finish_reason == "error"
    text = "".join(output.text for output in outputs)
    return outputs[-1].error_kind, outputs[-1].error_param, text


def test_allowed_tokens_that_a_grammar_has_no_use_for_end_the_request():
    """With an error where more must come, with a stop where it may end; others go on."""
    letters = tuple(map(byte_model.token_id, "ab"))
    four = (byte_model.token_id("4"),)
    plain = SamplingParams(temperature=0.0, max_tokens=6)
    cases = [
        (Grammar("regex", "[0-9]{3}"), letters),
        (Grammar("regex", "4[0-3]"), four),
        (Grammar("regex", "4?[0-3]?"), four),
        (None, four),
    ]
    each = [dataclasses.replace(plain, allowed_token_ids=allowed) for _, allowed in cases]
    found = byte_model.make_engine().generate(
        [PROMPTS[0]] * 4, each, [grammar for grammar, _ in cases]
    )
    assert failure(found[0]) == ("request", "allowed_token_ids", "")
    assert failure(found[1]) == ("request", "allowed_token_ids", "4")
    assert "".join(o.text for o in found[2]) == "4"
    assert found[2][-1].finish_reason == "stop"
    assert ("".join(o.text for o in found[3]), found[3][-1].finish_reason) == ("444444", "length")


def test_allowed_tokens_hold_in_the_parts_of_free_text():
    """A part opens only with tokens that are allowed; inside it nothing else may come."""
    tag = [{"trigger": "a", "begin": "a", "schema": {"type": "integer"}, "end": "b"}]
    grammar = Grammar("structural_tag", json.dumps(tag))
    allowed = tuple(map(byte_model.token_id, "axy"))
    sampling = SamplingParams(
        temperature=1.0, max_tokens=40, seed=1, allowed_token_ids=allowed, ignore_eos=True
    )
    [outputs] = byte_model.make_engine().generate([PROMPTS[0]], sampling, [grammar])
    kind, param, text = failure(outputs)
    assert (kind, param) == ("request", "allowed_token_ids")
    assert text.endswith("a")
    assert set(text[:-1]) <= {"x", "y"}


def test_the_end_of_reasoning_must_be_allowed():
    limit = ReasoningLimit(2, "<|start|>", "<|mark|>", is_open=True)
    engine = byte_model.make_engine()
    for tokens, is_over in ((["x"], True), (["x", "<|mark|>"], False)):
        allowed = tuple(map(byte_model.token_id, tokens))
        sampling = SamplingParams(temperature=0.0, max_tokens=5, allowed_token_ids=allowed)
        engine.add(GenerationRequest("r", PROMPTS[0], sampling, reasoning_limit=limit))
        outputs = tiny.run(engine)["r"]
        if is_over:
            assert failure(outputs) == ("request", "allowed_token_ids", "xx")
        else:
            assert outputs[-1].finish_reason == "length"


@pytest.mark.parametrize(
    "options",
    [
        {"bad_words": tuple((byte_model.token_id(c),) for c in "0123456789")},
        {"bad_words": tuple((byte_model.token_id(c),) for c in "0123456789"), "temperature": 1.5},
        {"logit_bias": tuple((byte_model.token_id(c), -100.0) for c in "0123456789")},
        {"no_repeat_ngram_size": 1},
        {"min_tokens": 20},
    ],
)
def test_a_grammar_wins_over_everything_but_allowed_tokens(options):
    """Its only tokens come although each is excluded; nothing that it forbids does."""
    sampling = SamplingParams(**({"temperature": 0.0, "max_tokens": 30} | options))
    prompt = byte_model.encode("0123456789")
    [outputs] = byte_model.make_engine().generate(
        [prompt], sampling, [Grammar("regex", "[0-9]{12}")]
    )
    text = "".join(output.text for output in outputs)
    assert (len(text), text.isdigit(), outputs[-1].finish_reason) == (12, True, "stop")
