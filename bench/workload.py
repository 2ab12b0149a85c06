"""What is asked of the server and when: prompts, lengths, arrival times; repeatable by seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Lengths = Literal["fixed", "sharegpt"]
Endpoint = Literal["completions", "chat"]

# ShareGPT's mean lengths in tokens: Kwon et al. 2023, https://arxiv.org/abs/2309.06180, figure 11.
# The paper gives means and histograms only; the log-normal shape with sigma 1 (median 0.61 of the
# mean, p99 6.2 times the mean) is our choice for their long tails, not a fit.
SHAREGPT_MEAN_INPUT_LEN = 161.31
SHAREGPT_MEAN_OUTPUT_LEN = 337.99
SHAREGPT_SIGMA = 1.0

# Frequent words: one token each, with their space, in the vocabularies we know.
# fmt: off
WORDS = (
    "time", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school",
    "state", "family", "student", "group", "country", "problem", "hand", "part", "place", "case",
    "week", "company", "system", "program", "question", "work", "night", "point", "home", "water",
    "room", "mother", "area", "money", "story", "fact", "month", "lot", "right", "study", "book",
    "eye", "job", "word", "business", "side", "kind",
)
# fmt: on
# Random ids of ordinary tokens: above the special and single-byte tokens, inside any vocabulary.
TOKEN_IDS = range(1000, 20_000)


@dataclass(frozen=True, slots=True)
class Workload:
    """How the requests of a run are drawn.

    Attributes:
        endpoint: Completions get random token ids, an exact length; chat random words, about one
            token each.
        lengths: "fixed" takes the two lengths as they are; "sharegpt" draws both (see above).
        input_len, output_len: Tokens.
        max_input_len, max_output_len: Drawn lengths are cut to these. The means drop a little.
        ignore_eos: Ask the server to generate through eos; no OpenAI field, so sent only if set.
    """

    endpoint: Endpoint = "completions"
    lengths: Lengths = "fixed"
    input_len: int = 128
    output_len: int = 128
    max_input_len: int = 1024
    max_output_len: int = 1024
    temperature: float = 0.0
    ignore_eos: bool = False

    def requests(self, count: int, seed: int) -> list[dict[str, object]]:
        """Returns request bodies without model and stream."""
        rng = random.Random(seed)
        return [self._request(rng, *self._draw_lengths(rng)) for _ in range(count)]

    def _draw_lengths(self, rng: random.Random) -> tuple[int, int]:
        if self.lengths == "fixed":
            return self.input_len, self.output_len
        input_len = draw_lognormal(rng, SHAREGPT_MEAN_INPUT_LEN, SHAREGPT_SIGMA)
        output_len = draw_lognormal(rng, SHAREGPT_MEAN_OUTPUT_LEN, SHAREGPT_SIGMA)
        return min(input_len, self.max_input_len), min(output_len, self.max_output_len)

    def _request(self, rng: random.Random, input_len: int, output_len: int) -> dict[str, object]:
        body: dict[str, object] = {"max_tokens": output_len, "temperature": self.temperature}
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.endpoint == "chat":
            words = " ".join(rng.choices(WORDS, k=input_len))
            return body | {"messages": [{"role": "user", "content": words}]}
        return body | {"prompt": random_token_ids(rng, input_len)}


def random_token_ids(rng: random.Random, count: int) -> list[int]:
    return rng.choices(TOKEN_IDS, k=count)


def draw_lognormal(rng: random.Random, mean: float, sigma: float) -> int:
    """Returns a length of at least 1 from a log-normal distribution of this mean."""
    log_mean = math.log(mean) - sigma**2 / 2
    return max(1, round(rng.lognormvariate(log_mean, sigma)))


def poisson_arrivals(rate: float, seed: int) -> Iterator[float]:
    """Yields arrival times in seconds from 0 on: exponential gaps of mean 1 / rate."""
    rng = random.Random(seed)
    time_s = 0.0
    while True:
        time_s += rng.expovariate(rate)
        yield time_s
