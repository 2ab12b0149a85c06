"""What a step's outputs want done to choose their tokens, and the programs that there are for it.

On a GPU a conditional may make the host wait for the device, which knows the predicate; at the best
it costs the device time. So what no row wants is left out of the program that chooses a step's
tokens: the host, which knows the rows' parameters, picks the program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from rtpjax.engine.batch import COLUMN


@dataclasses.dataclass(frozen=True)
class Wants:
    """Parts of sampling beyond the most likely token that a row's mask allows.

    Attributes:
        edits: Some logits change first: biases, penalties, bad words, repeated n-grams, or allowed
            tokens.
        draws: A temperature: a random token in place of the most likely one.
        filters: Top-k or top-p before the draw.
        logprobs: Log-probabilities.
    """

    edits: bool = False
    draws: bool = False
    filters: bool = False
    logprobs: bool = False

    def covers(self, other: Wants) -> bool:
        """Whether every part that the other has is one of these."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return all(mine or not theirs for mine, theirs in pairs)


NOTHING = Wants()
EVERYTHING = Wants(edits=True, draws=True, filters=True, logprobs=True)
# From the least to the one that covers all. Those before the last are without conditionals. They
# are for what most requests ask: greedy decoding, a temperature alone, and one with top-k or top-p,
# whose search reads the logits 60 times. A program more is a second of compilation for each number
# of rows, so the rest shares the last one, which takes the device a few microseconds more.
VARIANTS = {
    "greedy": NOTHING,
    "temperature": Wants(draws=True),
    "filters": Wants(draws=True, filters=True),
    "everything": EVERYTHING,
}

_EDITS = [
    COLUMN[name]
    for name in ("has_bias", "has_penalty", "has_bad_words", "ngram_size", "num_allowed")
]


def wants_of(outputs: np.ndarray) -> Wants:
    """What some output wants, of int32 `[S, F]` (see batch.output_inputs)."""
    floats = outputs.view(np.float32)
    draws = floats[:, COLUMN["temperature"]] > 0
    filters = (outputs[:, COLUMN["top_k"]] > 0) | (floats[:, COLUMN["top_p"]] < 1)
    return Wants(
        edits=bool(outputs[:, _EDITS].any()),
        draws=bool(draws.any()),
        filters=bool((draws & filters).any()),
        logprobs=bool(outputs[:, COLUMN["wants_logprobs"]].any()),
    )


def variants_of(platform: str) -> tuple[Wants, ...]:
    """What is compiled: on a CPU, whose conditionals cost nothing, the least and the last."""
    return (NOTHING, EVERYTHING) if platform == "cpu" else tuple(VARIANTS.values())


def least(variants: Iterable[Wants], wants: Wants) -> Wants:
    """The first variant that covers what is wanted."""
    return next(variant for variant in variants if variant.covers(wants))
