"""What one request may ask for at once: grammars, allowed tokens, prompt scores, preemption."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

from rtpjax.engine.request import Grammar, SamplingParams
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
