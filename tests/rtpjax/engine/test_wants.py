from __future__ import annotations

import itertools

import numpy as np
import pytest

from rtpjax.engine.batch import sampling_fields
from rtpjax.engine.wants import EVERYTHING, NOTHING, VARIANTS, Wants, least, variants_of, wants_of
from tests.rtpjax.engine import tiny

EDITS, DRAWS, LOGPROBS = Wants(edits=True), Wants(draws=True), Wants(logprobs=True)
FILTERS = Wants(draws=True, filters=True)


def rows(*options):
    """Packed rows of requests."""
    return np.stack(
        [sampling_fields(tiny.sequence((5, 6), tiny.params(**each)), 0) for each in options]
    )


@pytest.mark.parametrize(
    ("options", "wants"),
    [
        ({}, NOTHING),
        ({"top_p": 0.9, "top_k": 5}, NOTHING),  # what is greedy filters nothing
        ({"temperature": 0.7}, DRAWS),
        ({"temperature": 1e-30, "min_p": 0.1}, DRAWS),
        ({"temperature": 0.7, "top_k": 5}, FILTERS),
        ({"temperature": 0.7, "top_p": 0.99}, FILTERS),
        ({"logprobs": 0}, LOGPROBS),
        ({"prompt_logprobs": 2}, LOGPROBS),
        ({"logit_bias": ((4, 1.0),)}, EDITS),
        ({"min_tokens": 1}, EDITS),
        ({"repetition_penalty": 1.1}, EDITS),
        ({"presence_penalty": -0.1}, EDITS),
        ({"frequency_penalty": 0.1}, EDITS),
        ({"bad_words": ((4,),)}, EDITS),
        ({"no_repeat_ngram_size": 3}, EDITS),
        ({"allowed_token_ids": (4, 5)}, EDITS),
    ],
)
def test_what_a_request_wants(options, wants):
    assert wants_of(rows(options)) == wants
    assert wants_of(rows({}, options, {})) == wants


def test_a_step_wants_what_any_of_its_rows_wants():
    step = rows({"temperature": 0.7}, {"logprobs": 1}, {"top_k": 3})
    assert wants_of(step) == Wants(draws=True, logprobs=True)


def test_the_first_variant_that_has_all_parts_serves():
    for parts in itertools.product((False, True), repeat=4):
        wants = Wants(*parts)
        found = least(variants_of("gpu"), wants)
        assert found.covers(wants)
        assert found in (EVERYTHING, wants) or (wants.filters and not wants.draws)
    for wants in (NOTHING, DRAWS, FILTERS):
        assert least(variants_of("gpu"), wants) == wants
    assert not DRAWS.covers(EDITS) and not NOTHING.covers(DRAWS)


def test_every_platform_has_a_program_for_all_there_is():
    assert variants_of("cpu") == (NOTHING, EVERYTHING)
    assert set(variants_of("gpu")) == set(VARIANTS.values())
    assert variants_of("gpu")[-1] == EVERYTHING
