"""What HTTP callers may send lies within what the engine takes: no second set of ranges."""

from __future__ import annotations

from typing import Any

import pytest

from rtpjax.engine import admission
from rtpjax.engine import limits as engine_limits
from server import limits
from server.protocol.sampling import SamplingFields

PROPERTIES = SamplingFields.model_json_schema()["properties"]
# vLLM's -1 is "all", which the engine calls 0.
LEAST = {"top_k": 0}
# OpenAI's least is 0, for which the engine is given next to nothing.
NEVER_LEAST = {"top_p"}


def bounds(name: str) -> tuple[float, float, bool]:
    """Lowest and highest value of a field, and whether the lowest itself is left out."""
    schema: dict[str, Any] = PROPERTIES[name]
    kinds = [s for s in schema.get("anyOf", [schema]) if s.get("type") in ("number", "integer")]
    [kind] = kinds
    low = kind.get("minimum", kind.get("exclusiveMinimum"))
    is_open = "exclusiveMinimum" in kind or name in NEVER_LEAST
    return max(low, LEAST.get(name, low)), kind["maximum"], is_open


@pytest.mark.parametrize("name", sorted(PROPERTIES.keys() & admission.RANGES.keys()))
def test_numbers_have_the_range_of_the_engine(name):
    allowed = admission.RANGES[name]
    assert bounds(name) == (allowed.low, allowed.high, allowed.is_open)


def test_lists_and_texts_fit():
    stop = admission.TEXTS["stop"]
    assert stop.most > limits.MAX_STOP_STRINGS  # formats of calls add their own
    assert stop.most_chars >= limits.MAX_STOP_CHARS
    assert admission.CACHE_SALT.most_chars >= limits.MAX_CACHE_SALT_CHARS
    tokens = admission.TOKENS
    assert tokens["stop_token_ids"].most >= 2 * limits.MAX_STOP_TOKEN_IDS  # and single stop words
    assert tokens["stop_sequences"].most >= limits.MAX_STOP_TOKEN_IDS
    assert tokens["stop_sequences"].most_tokens >= limits.MAX_STOP_WORD_TOKENS
    assert tokens["bad_words"].most >= 3 * limits.MAX_BAD_WORDS
    assert tokens["bad_words"].most_tokens >= limits.MAX_BAD_WORD_TOKENS
    assert tokens["allowed_token_ids"].most >= limits.MAX_ALLOWED_TOKEN_IDS


def test_limits_that_both_sides_have_are_the_same():
    assert limits.MAX_NGRAM_TOKENS == engine_limits.MAX_NGRAM_TOKENS
    assert limits.MAX_TOP_LOGPROBS == engine_limits.MAX_LOGPROBS
    assert 2 * limits.MAX_BEAMS <= engine_limits.MAX_LOGPROBS
    assert (limits.MAX_INT32, limits.MAX_INT64) == (admission.MAX_INT32, admission.MAX_INT64)
