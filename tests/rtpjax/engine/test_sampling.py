"""The sampler against a plain numpy twin that sorts, in float64."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rtpjax.engine import sampling
from rtpjax.engine.batch import NO_SLOT, OutputInputs
from rtpjax.engine.limits import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_BIASES, MAX_LOGPROBS
from rtpjax.engine.sampling import ANY_TOKEN, EXCLUDED, SlotState
from rtpjax.engine.wants import EVERYTHING, VARIANTS, Wants, least, wants_of

V = 300
NUM_TOKENS = 290
MANY = 8192
_sample = jax.jit(sampling.sample, static_argnums=3, static_argnames="wants")


@dataclasses.dataclass(frozen=True)
class Case:
    """Sampling parameters, the tokens before, (token id, value, until) biases, and what a grammar
    allows (None for no grammar)."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    prompt: tuple[int, ...] = (5, 6)
    output: tuple[int, ...] = ()
    biases: tuple[tuple[int, float, int], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    ngram: int = 0
    allowed: tuple[int, ...] = ()
    seed: int = 0
    mask: tuple[int, ...] | None = None

    def shaped(self, logits: np.ndarray, num_tokens: int = NUM_TOKENS) -> np.ndarray:
        """Logits after mask, bias and penalties."""
        x = np.asarray(logits, np.float64).copy()
        x[num_tokens:] = -np.inf
        position = len(self.prompt) + len(self.output)
        for token_id, value, until in self.biases:
            x[token_id] += value if position < until else 0
        for token_id in {*self.prompt, *self.output}:
            x[token_id] *= 1 / self.repetition_penalty if x[token_id] > 0 else (
                self.repetition_penalty
            )  # fmt: skip
        for token_id in self.output:
            x[token_id] -= self.frequency_penalty
        for token_id in set(self.output):
            x[token_id] -= self.presence_penalty
        for *beginning, end in self.bad_words:
            if list(self.output[len(self.output) - len(beginning) :]) == beginning:
                x[end] = EXCLUDED
        for token_id in repeats((*self.prompt, *self.output), self.ngram):
            x[token_id] = EXCLUDED
        if self.allowed:
            x[[i for i in range(len(x)) if i not in self.allowed]] = 2 * EXCLUDED
        if self.mask is not None:
            x[np.setdiff1d(np.arange(len(x)), self.mask)] = -np.inf
        return x

    def probabilities(self, logits: np.ndarray, num_tokens: int = NUM_TOKENS) -> np.ndarray:
        """The distribution that the next token is drawn from."""
        x = self.shaped(logits, num_tokens)
        if self.temperature == 0:
            return np.eye(len(x))[x.argmax()]
        p = softmax(x / self.temperature)
        p = np.where(p >= self.min_p * p.max(), p, 0)
        return filtered(p / p.sum(), self.top_k, self.top_p)


def repeats(tokens: tuple[int, ...], size: int) -> set[int]:
    """Tokens that would complete an n-gram of the tokens again, found by listing all n-grams."""
    if not size:
        return set()
    ngrams = [tokens[i : i + size] for i in range(len(tokens) - size + 1)]
    beginning = tokens[len(tokens) - size + 1 :]
    return {ngram[-1] for ngram in ngrams if ngram[:-1] == beginning}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def filtered(p: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """p `[V]` cut by top-k and then top-p, ties with the last kept token kept."""
    if 0 < top_k < len(p):
        p = np.where(p >= np.sort(p)[-top_k], p, 0)
        p = p / p.sum()
    if top_p < 1:
        falling = np.sort(p)[::-1]
        last = np.searchsorted(np.cumsum(falling), top_p)
        p = np.where(p >= falling[last], p, 0)
    return p / p.sum()


def rows_of(cases: list[Case], *, logprobs: bool = False, **fields) -> OutputInputs:
    """OutputInputs of cases; row i's state is in slot i."""
    B = len(cases)
    lens = [len(c.prompt) + len(c.output) for c in cases]
    changed = [
        (c.repetition_penalty, c.presence_penalty, c.frequency_penalty) != (1, 0, 0) for c in cases
    ]
    ints = {
        "context_lens": lens,
        "at": np.arange(B),
        "sample_slots": np.arange(B),
        "slots": np.arange(B),
        "target_ids": [-1] * B,
        "has_mask": [bool(c.mask) for c in cases],
        "prompt_lens": [len(c.prompt) for c in cases],
        "seeds": [c.seed for c in cases],
        "top_k": [c.top_k for c in cases],
        "has_bias": [bool(c.biases) for c in cases],
        "has_penalty": changed,
        "has_bad_words": [bool(c.bad_words) for c in cases],
        "num_allowed": [len(c.allowed) for c in cases],
        "ngram_size": [c.ngram for c in cases],
        "wants_logprobs": [logprobs] * B,
    }
    floats = OutputInputs._fields[len(ints) :]
    values = {k: jnp.asarray(np.asarray(v, np.int32)) for k, v in ints.items()}
    values |= {k: jnp.asarray([getattr(c, k) for c in cases], jnp.float32) for k in floats}
    return OutputInputs(**(values | fields))


def state_of(cases: list[Case], width: int = 16) -> SlotState:
    """What the device keeps for the cases; what lies beyond a row's tokens is garbage."""
    B = len(cases)
    tokens = np.full((B, width), 7, np.int32)
    ids = np.full((B, MAX_BIASES), NO_SLOT, np.int32)
    values = np.zeros((B, MAX_BIASES), np.float32)
    until = np.zeros((B, MAX_BIASES), np.int32)
    bad_words = np.full((B, MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS), NO_SLOT, np.int32)
    for i, c in enumerate(cases):
        tokens[i, : len(c.prompt) + len(c.output)] = (*c.prompt, *c.output)
        for j, bias in enumerate([*((t, 0.0, 0) for t in c.allowed), *c.biases]):
            ids[i, j], values[i, j], until[i, j] = bias
        for j, word in enumerate(c.bad_words):
            bad_words[i, j] = (*[ANY_TOKEN] * (MAX_BAD_WORD_TOKENS - len(word)), *word)
    masks = np.zeros((B, 2048), np.uint8)  # more than any V
    for i, c in enumerate(cases):
        masks[i, list(c.mask or ())] = 1
    packed = np.packbits(masks, axis=1, bitorder="little").view(np.int32)
    return SlotState(*map(jnp.asarray, (tokens, ids, values, until, bad_words, packed)))


def packed(rows: OutputInputs) -> jax.Array:
    """The rows' fields as the step has them, int32 `[B, F]`."""
    return jnp.stack([lax.bitcast_convert_type(x, jnp.int32) for x in rows], axis=1)


def sample(
    logits: jax.Array,
    rows: OutputInputs,
    state: SlotState,
    num_tokens: int,
    wants: Wants = EVERYTHING,
) -> sampling.Sampled:
    """The function under test."""
    return _sample(logits, packed(rows), state, num_tokens, wants=wants)


def random_logits(B: int, width: int = V, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((B, width), dtype=np.float32)


def draws(case: Case, logits: np.ndarray, count: int = MANY) -> np.ndarray:
    """Tokens `[count]` drawn with as many seeds from logits `[V]`."""
    rows = rows_of([case] * count)
    seeds = jnp.arange(count, dtype=jnp.int32)
    rows = rows._replace(seeds=seeds, slots=jnp.zeros_like(seeds))
    x = jnp.asarray(np.broadcast_to(logits, (count, len(logits))))
    return np.asarray(sample(x, rows, state_of([case]), NUM_TOKENS).token_ids)


PENALIZED = Case(
    repetition_penalty=1.5,
    presence_penalty=0.5,
    frequency_penalty=0.25,
    prompt=(3, 4, 4, 11),
    output=(11, 20, 20, 20, 21),
    temperature=0.8,
)
DISTRIBUTIONS = {
    "plain": Case(),
    "hot": Case(temperature=2.0),
    "cold": Case(temperature=0.3),
    "top_k": Case(top_k=7, temperature=1.5),
    "top_k_1": Case(top_k=1),
    "top_k_beyond_the_vocabulary": Case(top_k=100_000),
    "top_p": Case(top_p=0.6),
    "masked": Case(mask=(0, 31, 32, 63, 150, 287, 289)),
    "masked_top_p": Case(mask=tuple(range(40, 260, 3)), top_p=0.7, top_k=30, temperature=0.7),
    "masked_and_biased": Case(mask=(3, 4, 5, 60), biases=((60, 3.0, 9), (200, 100.0, 9))),
    "top_p_tiny": Case(top_p=1e-6),
    "min_p": Case(min_p=0.2),
    "min_p_1": Case(min_p=1.0),
    "top_k_then_top_p": Case(top_k=10, top_p=0.7, temperature=1.5),
    "min_p_then_top_p": Case(min_p=0.1, top_p=0.8, temperature=1.5),
    "penalties": PENALIZED,
    "bias": Case(biases=((250, 8.0, NO_SLOT), (12, -100.0, NO_SLOT), (251, 50.0, 2))),
    "ban_ends_at_its_position": Case(output=(9,), biases=((1, EXCLUDED, 4), (2, 9.0, 3))),
    "bad_words": Case(
        output=(8, 9), bad_words=((4,), (9, 250), (8, 9, 251), (8, 252), (5, 6, 8, 9, 253))
    ),
    "bad_words_of_a_prompt_do_not_count": Case(bad_words=((6, 250), (5, 6, 251))),
    "no_token_twice": Case(prompt=(5, 6), output=(250, 9), ngram=1, temperature=3.0),
    "no_pair_twice": Case(prompt=(5, 6, 5), output=(7, 5), ngram=2, biases=((6, 6.0, 99),)),
    "allowed": Case(allowed=(3, 250, 11), biases=((250, 2.0, NO_SLOT), (40, 50.0, NO_SLOT))),
    "all": dataclasses.replace(
        PENALIZED, top_k=30, top_p=0.9, min_p=0.01, biases=((20, 3.0, NO_SLOT), (0, EXCLUDED, 99))
    ),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_draws_follow_the_twins_distribution(name):
    case, logits = DISTRIBUTIONS[name], random_logits(1, seed=len(name))[0]
    p = case.probabilities(logits)
    counted = np.bincount(draws(case, logits), minlength=V)
    assert counted[p == 0].sum() == 0
    # Chi-square over the tokens that are likely enough, and one bin for the others.
    likely = p * MANY >= 8
    expected = np.append(p[likely], p[~likely].sum()) * MANY
    found = np.append(counted[likely], counted[~likely].sum())
    expected, found = expected[expected > 0.5], found[expected > 0.5]
    excess = ((found - expected) ** 2 / expected).sum() - (len(expected) - 1)
    assert excess < 5 * np.sqrt(2 * len(expected))


def test_greedy_takes_the_first_of_the_highest_that_the_tokenizer_knows():
    cases = [Case(temperature=0.0)] * 3
    logits = random_logits(3)
    logits[0, 295] = 100.0
    logits[1, [40, 200]] = 50.0
    logits[2, 289] = 60.0
    found = sample(jnp.asarray(logits), rows_of(cases), state_of(cases), NUM_TOKENS)
    assert found.token_ids.tolist() == [logits[0, :NUM_TOKENS].argmax(), 40, 289]


@pytest.mark.parametrize("width", [5, 127, 128, 129, 1000])
def test_argmax_of_any_width_is_numpys(width):
    x = random_logits(9, width)
    x[0] = -3.0
    x[1, -1] = 99.0
    np.testing.assert_array_equal(sampling._argmax(jnp.asarray(x)), x.argmax(-1))


def test_a_tiny_temperature_is_greedy_and_hot_or_cold_neighbours_do_not_matter():
    logits = random_logits(5, seed=3, scale=30)
    cases = [Case(temperature=t, seed=i) for i, t in enumerate((1e-4, 1e-10, 1e-30, 0.0, 1.0))]
    found = sample(jnp.asarray(logits), rows_of(cases), state_of(cases), NUM_TOKENS).token_ids
    assert found[:4].tolist() == logits[:4, :NUM_TOKENS].argmax(-1).tolist()


def test_a_draw_depends_on_seed_and_position_only():
    logits = random_logits(7, seed=5)
    cases = [dataclasses.replace(PENALIZED, seed=i, top_p=0.9, temperature=3.0) for i in range(7)]
    together = sample(jnp.asarray(logits), rows_of(cases), state_of(cases), NUM_TOKENS).token_ids
    others = [Case(temperature=0.0), *[Case(seed=i, top_k=3) for i in range(15)]]
    for i in range(7):
        for alone in ([cases[i]], [*others[: 2 * i], cases[i], *others[2 * i :]]):
            x = random_logits(len(alone), seed=i)
            at = alone.index(cases[i])
            x[at] = logits[i]
            if len(alone) == 1:
                alone, x = alone * 2, np.repeat(x, 2, axis=0)
            rows = rows_of(alone)
            found = sample(jnp.asarray(x), rows, state_of(alone), NUM_TOKENS).token_ids
            assert found[at] == together[i]


def test_draws_at_different_positions_differ():
    logits = random_logits(1, scale=0.1)[0]
    rows = rows_of([Case()] * MANY)
    rows = rows._replace(
        context_lens=jnp.arange(MANY, dtype=jnp.int32), slots=jnp.zeros(MANY, jnp.int32)
    )
    x = jnp.asarray(np.broadcast_to(logits, (MANY, V)))
    found = np.asarray(sample(x, rows, state_of([Case()]), NUM_TOKENS).token_ids)
    assert np.bincount(found, minlength=V)[:NUM_TOKENS].min() > 0
    # Independent of the draw before: pairs agree as often as chance has it.
    p = Case().probabilities(logits)
    agree = (found[1:] == found[:-1]).sum()
    assert abs(agree - MANY * (p**2).sum()) < 5 * np.sqrt(MANY * (p**2).sum())


def test_filters_keep_the_tokens_that_the_twin_keeps():
    B = 64
    rng = np.random.default_rng(0)
    logits = random_logits(B, 1000)
    logits[: B // 4] = np.round(logits[: B // 4])  # ties
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    cases = [
        Case(top_k=int(k), top_p=float(np.float32(p)))
        for k, p in zip(
            rng.choice([0, 1, 2, 5, 50, 999, 1000, 2000], B),
            rng.choice([1.0, 1e-6, 0.1, 0.5, 0.9, 0.99, 0.9999], B),
            strict=True,
        )
    ]
    found = np.asarray(sampling._top_k_top_p(jnp.asarray(weights), rows_of(cases)))
    for case, w, kept in zip(cases, weights, found, strict=True):
        expected = filtered(w.astype(np.float64) / w.sum(dtype=np.float64), case.top_k, case.top_p)
        np.testing.assert_array_equal(kept > 0, expected > 0)
        np.testing.assert_array_equal(kept[kept > 0], w[kept > 0])


@pytest.mark.parametrize("width", [128, 400])  # lanes of a block, blocks of a vocabulary
def test_no_token_without_weight_is_drawn_however_sums_round(width):
    rng = np.random.default_rng(0)
    weights = rng.random((500, width), dtype=np.float32) * (rng.random((500, width)) < 0.3)
    weights[:, 0] = 1
    first_above = jax.jit(sampling._first_above)
    sums = np.asarray(jax.jit(lambda x: jnp.cumsum(x, axis=-1))(jnp.asarray(weights)))
    for at in range(width):
        border = (sums[:, at : at + 1] / sums[:, -1:]).astype(np.float32)
        for fraction in (np.nextafter(border, np.float32(0)), border, np.ones_like(border)):
            index, rest = first_above(jnp.asarray(weights), jnp.asarray(fraction))
            assert (weights[np.arange(500), np.asarray(index)] > 0).all()
            assert ((np.asarray(rest) >= 0) & (np.asarray(rest) <= 1)).all()


def test_ngrams_are_not_repeated_in_rows_of_any_size():
    """Rows of sizes 0 to 9 side by side, over few different tokens, so that n-grams come again."""
    rng = np.random.default_rng(1)
    cases = []
    for size in [0, 1, 2, 2, 3, 3, 4, 5, 9, 128] * 6:
        length = rng.integers(1, 30)
        tokens = tuple(rng.integers(0, 3, length).tolist())
        at = rng.integers(1, length + 1)
        cases.append(Case(ngram=size, prompt=tokens[:at], output=tokens[at:]))
    # The whole context again, and what lies beyond the context (7, 7, ..).
    cases.append(Case(ngram=4, prompt=(1, 2, 3), output=(4, 1, 2, 3)))
    cases.append(Case(ngram=2, prompt=(7,), output=(7,)))
    logits = random_logits(len(cases))
    found = sampling._exclude_repeats(jnp.asarray(logits), rows_of(cases), state_of(cases, 40))
    banned = [
        set(np.flatnonzero(row == np.float32(EXCLUDED)).tolist()) for row in np.asarray(found)
    ]
    assert banned == [repeats((*c.prompt, *c.output), c.ngram) for c in cases]
    assert sum(map(bool, banned)) > 20
    kept = np.asarray(found) != np.float32(EXCLUDED)
    np.testing.assert_array_equal(np.asarray(found)[kept], logits[kept])


@pytest.mark.reference
def test_ngrams_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers import NoRepeatNGramLogitsProcessor

    rng = np.random.default_rng(2)
    for size in (1, 2, 3, 4):
        tokens = rng.integers(0, 4, (8, 21))
        scores = NoRepeatNGramLogitsProcessor(size)(torch.tensor(tokens), torch.zeros(8, V))
        expected = [set(np.flatnonzero(np.isinf(row)).tolist()) for row in scores.numpy()]
        assert expected == [repeats(tuple(row.tolist()), size) for row in tokens]


def test_penalties_and_biases_change_the_logits_as_the_twin_does():
    cases = [
        PENALIZED,
        Case(),
        dataclasses.replace(PENALIZED, repetition_penalty=0.5, output=()),
        Case(frequency_penalty=-2.0, output=(3,) * 8),
        Case(repetition_penalty=2.0, biases=((5, 4.0, 3), (6, 4.0, 2), (5, -1.0, NO_SLOT))),
    ]
    logits = random_logits(len(cases))
    rows, state = rows_of(cases), state_of(cases)
    found = sampling._add_bias(jnp.asarray(logits), rows, state)
    found = np.asarray(sampling._penalize(found, rows, state))
    for case, before, after in zip(cases, logits, found, strict=True):
        np.testing.assert_allclose(after, case.shaped(before, V), rtol=1e-6, atol=1e-6)


def test_the_smallest_repetition_penalty_leaves_a_distribution():
    case = Case(repetition_penalty=1e-38, prompt=(4,), seed=3)
    logits = random_logits(2)
    logits[:, 4] = 5.0
    found = sample(jnp.asarray(logits), rows_of([case] * 2), state_of([case] * 2), NUM_TOKENS)
    assert found.token_ids.tolist() == [4, 4]


@pytest.mark.parametrize("width", [V, 1027])
def test_logprobs_are_those_of_the_models_own_softmax(width):
    cases = [dataclasses.replace(PENALIZED, seed=i, top_k=5) for i in range(4)]
    logits = random_logits(4, width)
    rows = rows_of(cases, logprobs=True)
    found = sample(jnp.asarray(logits), rows, state_of(cases), width)
    expected = np.log(softmax(logits.astype(np.float64)))
    best = np.argsort(-expected, axis=-1)[:, :MAX_LOGPROBS]
    np.testing.assert_array_equal(found.top_ids, best)
    np.testing.assert_allclose(
        found.top_logprobs, np.take_along_axis(expected, best, -1), atol=1e-5
    )
    chosen = np.take_along_axis(expected, np.asarray(found.token_ids)[:, None], -1)[:, 0]
    np.testing.assert_allclose(found.logprobs, chosen, atol=1e-5)


def test_tokens_beyond_the_tokenizer_have_no_logprob_and_no_mass():
    cases = [Case(temperature=0.0)] * 2
    logits = random_logits(2)
    logits[:, NUM_TOKENS:] = 50.0
    rows = rows_of(cases, logprobs=True)
    found = sample(jnp.asarray(logits), rows, state_of(cases), NUM_TOKENS)
    expected = np.log(softmax(logits[:, :NUM_TOKENS].astype(np.float64)))
    np.testing.assert_allclose(found.logprobs, expected.max(-1), atol=1e-5)
    assert np.asarray(found.top_ids).max() < NUM_TOKENS


def test_logprobs_that_no_row_wants_are_zero():
    cases = [Case()] * 2
    found = sample(jnp.asarray(random_logits(2)), rows_of(cases), state_of(cases), NUM_TOKENS)
    assert not np.asarray(found.top_logprobs).any()


def test_a_large_vocabulary_reaches_its_last_tokens():
    width = 49_153
    logits = np.full((8, width), EXCLUDED, np.float32)
    last = [0, 127, 128, 32_000, 49_024, 49_150, 49_151, 49_152]
    logits[np.arange(8), last] = 1.0
    cases = [Case(seed=i, top_p=0.9 if i % 2 else 1.0) for i in range(8)]
    state = state_of(cases)._replace(masks=jnp.zeros((8, -(-width // 32)), jnp.int32))
    drawn = sample(jnp.asarray(logits), rows_of(cases), state, width).token_ids
    assert drawn.tolist() == last


def test_a_mask_holds_against_everything_else_a_row_may_ask_for():
    logits = random_logits(4)
    cases = [
        Case(mask=(17,), biases=((17, EXCLUDED, 99),)),  # the end, before min_tokens
        Case(mask=(17, 18), repetition_penalty=1e-9, prompt=(1, 2, 3), temperature=2.0),
        Case(mask=(299, 17), temperature=0.0),  # 299 is beyond the tokenizer
        Case(biases=((200, 100.0, 99),)),
    ]
    found = sample(jnp.asarray(logits), rows_of(cases), state_of(cases), NUM_TOKENS).token_ids
    assert found[0] == 17
    assert found[1] in (17, 18)
    assert found[2] == 17
    assert found[3] == 200


def random_case(rng: np.random.Generator, *, is_shaped: bool) -> Case:
    """A request's parameters: each is its default in most of them."""

    def maybe(value, default, chance: float = 0.3):
        return value if rng.random() < chance else default

    shape = {}
    if is_shaped:
        shape = {
            "repetition_penalty": maybe(1.3, 1.0),
            "presence_penalty": maybe(0.5, 0.0),
            "biases": maybe(((int(rng.integers(V)), 4.0, NO_SLOT),), ()),
            "bad_words": maybe(((int(rng.integers(V)),),), ()),
            "ngram": maybe(2, 0),
            "allowed": maybe(tuple(rng.integers(0, NUM_TOKENS, 5).tolist()), (), 0.1),
        }
    return Case(
        temperature=maybe(float(rng.uniform(0.1, 3)), 0.0, 0.6),
        top_k=maybe(int(rng.integers(1, 60)), 0),
        top_p=maybe(float(rng.uniform(0.05, 1)), 1.0),
        min_p=maybe(0.05, 0.0),
        prompt=tuple(rng.integers(0, 9, 5).tolist()),
        output=tuple(rng.integers(0, 9, rng.integers(0, 9)).tolist()),
        seed=int(rng.integers(2**31)),
        mask=maybe(tuple(rng.integers(0, NUM_TOKENS, 40).tolist()), None),
        **shape,
    )


def test_a_row_gets_the_same_of_every_variant_and_beside_any_neighbours():
    """Batches of like rows have small variants, and all rows in one batch have the last one."""
    B = 8
    rng = np.random.default_rng(0)
    kinds = [  # (temperature, filters, shaped, logprobs) that no row of a batch goes beyond
        (False, False, False, False),
        (True, False, False, False),
        (True, True, False, False),
        (True, True, True, True),
    ]
    used = set()
    for seed, (is_hot, has_filters, is_shaped, logprobs) in enumerate(kinds * 6):
        cases = [random_case(rng, is_shaped=is_shaped) for _ in range(B)]
        if not is_hot:
            cases = [dataclasses.replace(c, temperature=0.0) for c in cases]
        if not has_filters:
            cases = [dataclasses.replace(c, top_k=0, top_p=1.0) for c in cases]
        logits = jnp.asarray(random_logits(B, seed=seed))
        wants_logprobs = jnp.asarray(rng.integers(0, 2, B) * logprobs, jnp.int32)
        targets = jnp.asarray(np.where(rng.random(B) < 0.2, rng.integers(0, V, B), -1), jnp.int32)
        rows = rows_of(cases, wants_logprobs=wants_logprobs, target_ids=targets)
        state = state_of(cases)
        variant = least(VARIANTS.values(), wants_of(np.asarray(packed(rows))))
        used.add(variant)
        whole = sample(logits, rows, state, NUM_TOKENS)
        for one, other in zip(whole, sample(logits, rows, state, NUM_TOKENS, variant), strict=True):
            np.testing.assert_array_equal(one, other)
        # Each row beside one that wants everything, in place of its neighbour.
        greedy = dataclasses.replace(PENALIZED, top_p=0.9)
        mixed = [c if i % 2 else greedy for i, c in enumerate(cases)]
        wants_logprobs = wants_logprobs.at[::2].set(1)
        rows = rows_of(mixed, wants_logprobs=wants_logprobs, target_ids=targets)
        for one, other in zip(
            whole, sample(logits, rows, state_of(mixed), NUM_TOKENS), strict=True
        ):
            np.testing.assert_array_equal(one[1::2], other[1::2])
    assert used == set(VARIANTS.values())
