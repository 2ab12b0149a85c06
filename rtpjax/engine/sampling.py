"""Chooses the next token of each row, on the device and without sorting.

top-k and top-p keep the tokens whose logit reaches a threshold; the threshold is found by bisection
over the float's bits, in 30 passes (sorting a vocabulary compiles for seconds and runs slowly on a
GPU). Tokens that tie with the last kept one are kept. A draw takes one uniform number, made from
the row's seed and the token's position alone, so that a row's tokens do not depend on its
neighbours. Parts that no row asks for are left out of the program (rtpjax.engine.wants), or skipped
by lax.cond in the program that has them all. Masks are in each: they are read together with the
logits, a 32nd of whose bytes they have, in the same kernels, and grammars are often used greedily.

Order: logit bias, penalties, bad words and repeated n-grams, allowed tokens, the grammar's mask,
temperature, min-p, top-k, top-p, draw. Each goes further than those before: where the grammar
leaves nothing but a bad word, it is chosen. Log-probabilities are the model's own: of the logits
before all this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtpjax.engine.batch import NO_SLOT, OutputInputs, output_inputs
from rtpjax.engine.limits import (
    MAX_BAD_WORD_TOKENS,
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_NGRAM_TOKENS,
)
from rtpjax.engine.wants import EVERYTHING, Wants

T = TypeVar("T")

EXCLUDED = -1e30
ANY_TOKEN = -1  # in a bad word: fills it up on the left
_LANES = 128  # width of the blocks that reductions over the vocabulary work in
_ONE = int(np.float32(1).view(np.int32))  # the bits of 1.0


class SlotState(NamedTuple):
    """Per-request state on the device; a slot is a running request's row.

    Attributes:
        tokens: int32 `[slots, max_model_len]`, tokens by position, as far as they are known.
        bias_ids: int32 `[slots, MAX_BIASES]`, token ids; NO_SLOT for unused entries.
        bias_values: float32 `[slots, MAX_BIASES]`, added to the token's logit ...
        bias_until: int32 `[slots, MAX_BIASES]`, ... while the sampled position is less than this.
            The first num_allowed entries also name the allowed tokens of a row that has some.
        bad_words: int32 `[slots, MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS]`, each filled up with
            ANY_TOKEN on the left; NO_SLOT for unused ones.
        masks: int32 `[slots, ceil(V / 32)]`, a bit for each token that the slot's grammar allows.
    """

    tokens: jax.Array
    bias_ids: jax.Array
    bias_values: jax.Array
    bias_until: jax.Array
    bad_words: jax.Array
    masks: jax.Array


class Sampled(NamedTuple):
    """What a step gives back. Log-probabilities are 0 where no row wanted them.

    Attributes:
        token_ids: int32 `[B]`.
        logprobs: float32 `[B]`, of the sampled tokens.
        top_ids: int32 `[B, MAX_LOGPROBS]`, the most likely tokens, best first.
        top_logprobs: float32 `[B, MAX_LOGPROBS]`.
    """

    token_ids: jax.Array
    logprobs: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array


def sample(
    logits: jax.Array,
    outputs: jax.Array,
    state: SlotState,
    num_tokens: int,
    *,
    wants: Wants = EVERYTHING,
) -> Sampled:
    """Samples one token a row of logits; outputs with a target score that one in its place.

    A row gets the same, bit for bit, of every variant that covers what it wants.

    Args:
        logits: float32 `[B, V]`.
        outputs: int32 `[B, F]`, see batch.output_inputs.
        state: Per-request state; holds all tokens before the sampled one for rows with penalties.
        num_tokens: Tokens that the tokenizer knows; ids from there on are never sampled.
        wants: One of VARIANTS; what it lacks is not in the program.
    """
    V = logits.shape[1]
    rows = output_inputs(outputs)
    # The last variant serves whatever the others do not: what is in it may be wanted by no row.
    when = _if_any if wants == EVERYTHING else _always
    if num_tokens < V:
        logits = jnp.where(jnp.arange(V)[None, :] < num_tokens, logits, EXCLUDED)
    shaped = logits
    if wants.edits:
        for flags, edit in (
            (rows.has_bias, _add_bias),
            (rows.has_penalty, _penalize),
            (rows.has_bad_words, _exclude_bad_words),
            (rows.ngram_size, _exclude_repeats),
            (rows.num_allowed, _only_allowed),
        ):
            shaped = when(
                flags, lambda x, edit=edit: edit(x, output_inputs(outputs), state), shaped
            )
    shaped = when(rows.has_mask, lambda x: _apply_mask(x, output_inputs(outputs), state), shaped)
    token_ids = _argmax(shaped)
    if wants.draws:
        token_ids = when(
            rows.temperature > 0,
            lambda greedy: _drawn(shaped, greedy, output_inputs(outputs), wants.filters, when),
            token_ids,
        )
    token_ids = jnp.where(rows.target_ids >= 0, rows.target_ids, token_ids)
    B = len(token_ids)
    scores = jnp.zeros(B), jnp.zeros((B, MAX_LOGPROBS), jnp.int32), jnp.zeros((B, MAX_LOGPROBS))
    if wants.logprobs:
        scores = when(
            rows.wants_logprobs,
            lambda _: _logprobs(logits, token_ids, output_inputs(outputs).wants_logprobs > 0),
            scores,
        )
    return Sampled(token_ids, *scores)


def _if_any(flags: jax.Array, function: Callable[[T], T], x: T) -> T:
    """function(x) if any row is flagged, else x.

    What the function needs of the rows it should take from `outputs` itself: a column that it is
    given is copied by a kernel of its own.
    """
    return lax.cond(flags.any(), function, lambda y: y, x)


def _always(_: jax.Array, function: Callable[[T], T], x: T) -> T:
    """function(x)."""
    return function(x)


def _add_bias(logits: jax.Array, rows: OutputInputs, state: SlotState) -> jax.Array:
    ids, values, until = (
        x[rows.slots] for x in (state.bias_ids, state.bias_values, state.bias_until)
    )
    applies = (until > rows.context_lens[:, None]) & (rows.has_bias > 0)[:, None]
    row = jnp.arange(logits.shape[0])[:, None]
    return logits.at[row, ids].add(jnp.where(applies, values, 0.0), mode="drop")


def _penalize(logits: jax.Array, rows: OutputInputs, state: SlotState) -> jax.Array:
    """Repetition, presence and frequency penalties over the tokens before the sampled one."""
    B, V = logits.shape
    tokens = state.tokens[rows.slots]
    at = jnp.arange(tokens.shape[1])[None, :]
    is_context = at < rows.context_lens[:, None]
    is_output = is_context & (at >= rows.prompt_lens[:, None])
    row = jnp.arange(B)[:, None]

    def count(mask: jax.Array) -> jax.Array:
        zeros = jnp.zeros((B, V), jnp.float32)
        return zeros.at[row, tokens].add(mask.astype(jnp.float32), mode="drop")

    outputs = count(is_output)
    repetition = rows.repetition_penalty[:, None]
    # A tiny penalty must not make infinite logits.
    divided = jnp.minimum(logits / repetition, -EXCLUDED)
    scaled = jnp.where(logits > 0, divided, logits * repetition)
    logits = jnp.where(count(is_context) > 0, scaled, logits)
    presence = jnp.where(outputs > 0, rows.presence_penalty[:, None], 0.0)
    return logits - presence - rows.frequency_penalty[:, None] * outputs


def _exclude_bad_words(logits: jax.Array, rows: OutputInputs, state: SlotState) -> jax.Array:
    """Takes out the last tokens of bad words whose other tokens the output ends with."""
    words = state.bad_words[rows.slots]
    beginnings, ends = words[..., :-1], words[..., -1]
    at = rows.context_lens[:, None] + jnp.arange(1 - MAX_BAD_WORD_TOKENS, 0)[None, :]
    output = state.tokens.at[rows.slots[:, None], at].get(mode="clip")
    output = jnp.where(at >= rows.prompt_lens[:, None], output, NO_SLOT)
    matches = (beginnings == ANY_TOKEN) | (beginnings == output[:, None, :])
    applies = matches.all(-1) & (rows.has_bad_words > 0)[:, None]
    row = jnp.arange(logits.shape[0])[:, None]
    return logits.at[row, jnp.where(applies, ends, NO_SLOT)].set(EXCLUDED, mode="drop")


def _exclude_repeats(logits: jax.Array, rows: OutputInputs, state: SlotState) -> jax.Array:
    """Takes out the tokens that would complete an n-gram of the context a second time.

    Source: transformers' NoRepeatNGramLogitsProcessor, which counts the prompt in, too.
    """
    tokens = state.tokens[rows.slots]
    at = jnp.arange(tokens.shape[1])[None, :]
    sizes, ends = rows.ngram_size[:, None], rows.context_lens[:, None]

    def compare(i: jax.Array, matches: jax.Array) -> jax.Array:
        """Whether the token i places before is the one that is i places before the next token."""
        before = jnp.take(tokens, at[0] - i, axis=1, mode="clip")
        last = jnp.take_along_axis(tokens, ends - i, axis=1, mode="clip")
        return matches & ((before == last) | (i >= sizes))

    is_last = (sizes > 0) & (at >= sizes - 1) & (at < ends)  # of an n-gram in the context
    applies = lax.fori_loop(1, jnp.minimum(sizes.max(), MAX_NGRAM_TOKENS), compare, is_last)
    row = jnp.arange(logits.shape[0])[:, None]
    return logits.at[row, jnp.where(applies, tokens, NO_SLOT)].set(EXCLUDED, mode="drop")


def _only_allowed(logits: jax.Array, rows: OutputInputs, state: SlotState) -> jax.Array:
    """Takes out all but the allowed tokens, further than anything else does."""
    ids = state.bias_ids[rows.slots]
    is_listed = jnp.arange(MAX_BIASES)[None, :] < rows.num_allowed[:, None]
    row = jnp.arange(logits.shape[0])[:, None]
    allowed = jnp.zeros(logits.shape, jnp.bool_)
    allowed = allowed.at[row, jnp.where(is_listed, ids, NO_SLOT)].set(True, mode="drop")
    return jnp.where(allowed | (rows.num_allowed == 0)[:, None], logits, 2 * EXCLUDED)


def _apply_mask(logits: jax.Array, rows: OutputInputs, state: SlotState) -> jax.Array:
    """-inf for what the grammar forbids: below EXCLUDED, since it may allow nothing but an end."""
    B, V = logits.shape
    bits = state.masks[rows.slots][:, :, None] >> jnp.arange(32, dtype=jnp.int32)[None, None, :]
    allowed = (bits & 1).reshape(B, -1)[:, :V] > 0
    return jnp.where(allowed | (rows.has_mask == 0)[:, None], logits, -jnp.inf)


def _drawn(
    logits: jax.Array,
    greedy: jax.Array,
    rows: OutputInputs,
    has_filters: bool,
    when: Callable[..., jax.Array],
) -> jax.Array:
    """Draws a token for each row that has a temperature; the others keep theirs."""
    temperature = jnp.where(rows.temperature > 0, rows.temperature, 1.0)
    # Shifted first: a small temperature may take the others to -inf, but never the highest.
    weights = jnp.exp((logits - logits.max(-1, keepdims=True)) / temperature[:, None])
    weights = jnp.where(weights >= rows.min_p[:, None], weights, 0.0)
    if has_filters:
        filters = (rows.top_k > 0) | (rows.top_p < 1)
        weights = when(filters, lambda w: _top_k_top_p(w, rows), weights)
    return jnp.where(rows.temperature > 0, _draw(weights, rows), greedy)


def _draw(weights: jax.Array, rows: OutputInputs) -> jax.Array:
    """Draws a token a row by inverting the distribution function that weights `[B, V]` have."""
    blocks = _blocks(weights, 0.0)
    block, rest = _first_above(blocks.sum(-1), _uniform(rows)[:, None])
    lane, _ = _first_above(_take(blocks, block), rest)
    return block * _LANES + lane


def _first_above(weights: jax.Array, fraction: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Index `[B]` where the running sum of weights `[B, n]` passes a fraction `[B, 1]` of all.

    Also returns which fraction of that entry's own weight was passed, to go on inside it. Never an
    entry of weight 0.
    """
    # The sums are added in a tree, so rounding can raise them at an entry of weight 0, too.
    sums = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)
    # Rounding must not put the target beyond the last entry that has weight.
    target = jnp.minimum(fraction, 1 - 1e-6) * sums.max(-1, keepdims=True)
    index = jnp.argmax(sums > target, axis=-1).astype(jnp.int32)
    at = index[:, None]
    weight = jnp.take_along_axis(weights, at, axis=-1)
    before = jnp.take_along_axis(sums, at, axis=-1) - weight
    return index, jnp.clip((target - before) / weight, 0.0, 1.0)


def _uniform(rows: OutputInputs) -> jax.Array:
    """A uniform number in [0, 1) a row `[B]`, from seed and position."""

    def one(seed: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), position))

    return jax.vmap(one)(rows.seeds, rows.context_lens)


def _top_k_top_p(weights: jax.Array, rows: OutputInputs) -> jax.Array:
    """weights `[B, V]` (at most 1) with 0 for the tokens that top-k and then top-p drop."""
    V = weights.shape[1]
    top_k = jnp.where(rows.top_k > 0, rows.top_k, V).astype(jnp.float32)
    positive = (weights > 0).astype(jnp.float32)
    weights = jnp.where(weights >= _threshold(weights, positive, top_k), weights, 0.0)
    enough = jnp.where(rows.top_p < 1, rows.top_p, 2.0) * weights.sum(-1)
    return jnp.where(weights >= _threshold(weights, weights, enough), weights, 0.0)


def _threshold(keys: jax.Array, amounts: jax.Array, enough: jax.Array) -> jax.Array:
    """Largest t `[B, 1]` for which amounts of keys >= t reach enough `[B]`; 0 if there is none.

    Keys are floats from 0 to 1: their order is the order of their bits, taken as integers.
    """
    bits = lax.bitcast_convert_type(keys, jnp.int32)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # low has enough, high has not
        middle = (low + high) // 2
        has_enough = jnp.where(bits >= middle[:, None], amounts, 0.0).sum(-1) >= enough
        return jnp.where(has_enough, middle, low), jnp.where(has_enough, high, middle)

    start = jnp.zeros_like(enough, jnp.int32), jnp.full_like(enough, _ONE + 1, jnp.int32)
    # As often as a known number says: the host need not ask the device whether to go on.
    low, _ = lax.fori_loop(0, _ONE.bit_length(), halve, start)
    return lax.bitcast_convert_type(low, jnp.float32)[:, None]


def _logprobs(
    logits: jax.Array, token_ids: jax.Array, wants: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probability of token_ids `[B]`; the best ids and values, each `[B, MAX_LOGPROBS]`.

    All 0 in rows that do not want them.
    """
    B = logits.shape[0]
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)

    def next_best(i: jax.Array, state):
        left, ids, values = state
        best = _argmax(left)[:, None]
        value = jnp.take_along_axis(left, best, axis=-1)
        left = left.at[jnp.arange(B), best[:, 0]].set(-jnp.inf)
        return left, ids.at[:, i].set(best[:, 0]), values.at[:, i].set(value[:, 0])

    ids = jnp.zeros((B, MAX_LOGPROBS), jnp.int32)
    values = jnp.zeros((B, MAX_LOGPROBS), jnp.float32)
    _, ids, values = lax.fori_loop(0, MAX_LOGPROBS, next_best, (logits, ids, values))
    chosen = jnp.take_along_axis(logits, token_ids[:, None], axis=-1)
    each = wants[:, None]
    return (
        jnp.where(wants, (chosen - total)[:, 0], 0.0),
        jnp.where(each, ids, 0),
        jnp.where(each, values - total, 0.0),
    )


def _blocks(x: jax.Array, fill: float) -> jax.Array:
    """`[B, V]` as `[B, blocks, _LANES]`, filled up."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % _LANES)), constant_values=fill)
    return x.reshape(x.shape[0], -1, _LANES)


def _take(blocks: jax.Array, block: jax.Array) -> jax.Array:
    """Block number block `[B]` of each row: `[B, _LANES]`."""
    return jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]


def _argmax(x: jax.Array) -> jax.Array:
    """First index of a row's maximum, int32 `[B]`; 10 times faster than jnp.argmax on the CPU."""
    blocks = _blocks(x, -jnp.inf)
    block = jnp.argmax(blocks.max(-1), axis=-1)
    return (block * _LANES + jnp.argmax(_take(blocks, block), axis=-1)).astype(jnp.int32)
