"""Packs a scheduled step into int32 arrays, one for each of its programs, which take them apart.

One upload instead of a dozen: each has a fixed cost that is larger than copying its bytes. Floats
travel as their bits.

    forward:  | tokens (3 + G) x T | query_start B + 1 | page_tables G x B x W | context_lens B |
    choose:   outputs S x F

The layout depends on the bucket only, so both sides compute the same offsets. A decode bucket has
T == B rows of one token; a drafted token is such a row, too. An extend bucket has T tokens and
always max_num_seqs rows. With several dp groups there is such a vector for each, all of one layout,
one after another.

An output is a token of the step whose logits are wanted, to sample the next one or to score a known
one; F are its fields (OutputInputs). A row may have none, or many. Their number S is padded by
itself, to what a decode bucket can have; where there are more, `choose` runs several times.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from typing import Generic, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtpjax.engine.request import SamplingParams
from rtpjax.engine.scheduler import ScheduledRow
from rtpjax.engine.sequence import Sequence
from rtpjax.models.step import StepInputs

ArrayT = TypeVar("ArrayT", np.ndarray, jax.Array)

PENDING = -1  # token id: the value is still on the device, at the token's slot and position
NO_SLOT = np.iinfo(np.int32).max  # an index that scatters drop


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The shape that a step is padded to.

    Attributes:
        kind: "decode" (one token a row) or "extend".
        num_tokens: T.
        num_rows: B.
    """

    kind: Literal["decode", "extend"]
    num_tokens: int
    num_rows: int

    def __str__(self) -> str:
        return f"{self.kind}[{self.num_tokens}]"


class OutputInputs(NamedTuple):
    """What is wanted of each output, and of the request that it belongs to. All `[S]`.

    int32, and float32 from temperature on.

    Attributes:
        context_lens: Tokens up to the one whose logits are wanted, itself included; also the
            position of the token sampled.
        at: Index in T of the token whose logits are wanted.
        sample_slots: Slot that the sampled token is written to; NO_SLOT where none is sampled.
        slots: The request's slot in the per-request device state.
        target_ids: Token to score in place of sampling one; -1 to sample.
        has_mask: 1 if the slot's mask says which tokens may be sampled.
        prompt_lens: Tokens of context that are prompt.
        seeds: Seed of the request's draws, as 32 bits.
        top_k: 0 keeps all.
        has_bias, has_penalty, has_bad_words, wants_logprobs: 0 or 1; a part of the program runs if
            any output needs it.
        num_allowed: How many of the slot's biases name its allowed tokens; 0 allows all tokens.
        ngram_size: No n-gram of this many tokens comes twice; 0 for none.
        temperature: 0 is greedy.
        top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty: As in SamplingParams.
    """

    context_lens: jax.Array
    at: jax.Array
    sample_slots: jax.Array
    slots: jax.Array
    target_ids: jax.Array
    has_mask: jax.Array
    prompt_lens: jax.Array
    seeds: jax.Array
    top_k: jax.Array
    has_bias: jax.Array
    has_penalty: jax.Array
    has_bad_words: jax.Array
    num_allowed: jax.Array
    ngram_size: jax.Array
    wants_logprobs: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array


NUM_OUTPUT_FIELDS = len(OutputInputs._fields)
COLUMN = {name: i for i, name in enumerate(OutputInputs._fields)}
_NUM_CHANGING = COLUMN["prompt_lens"]  # fields before it change from step to step
_FLOATS = OutputInputs._fields[COLUMN["temperature"] :]


def empty_outputs(count: int) -> np.ndarray:
    """Outputs that want nothing, int32 `[count, F]`: what fills up the last ones of a step."""
    return np.tile(_EMPTY_OUTPUT, (count, 1))


_EMPTY_OUTPUT = np.zeros(NUM_OUTPUT_FIELDS, np.int32)
_EMPTY_OUTPUT[COLUMN["sample_slots"]] = NO_SLOT
_EMPTY_OUTPUT[[COLUMN["top_p"], COLUMN["repetition_penalty"]]] = np.float32(1).view(np.int32)
_SCORING_OUTPUT = _EMPTY_OUTPUT.copy()
_SCORING_OUTPUT[COLUMN["wants_logprobs"]] = 1


class Parts(NamedTuple, Generic[ArrayT]):
    """The packed vector, taken apart.

    Attributes:
        tokens: `[3 + G, T]`: token ids, positions, cache slots (page * page_size + offset) in each
            cache group, and the per-request slots.
        query_start: `[B + 1]`.
        page_tables: `[G, B, W]`, of each cache group.
        context_lens: `[B]`, tokens of context, this step's included; 0 for rows of padding.
    """

    tokens: ArrayT
    query_start: ArrayT
    page_tables: ArrayT
    context_lens: ArrayT


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each part stands in the packed vector.

    Attributes:
        bucket: The step's shape.
        table_width: Pages that a row can name, W.
        num_groups: Cache groups, G.
    """

    bucket: Bucket
    table_width: int
    num_groups: int = 1

    @property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        T, B, G = self.bucket.num_tokens, self.bucket.num_rows, self.num_groups
        return (3 + G, T), (B + 1,), (G, B, self.table_width), (B,)

    @property
    def size(self) -> int:
        """int32 entries of the vector."""
        return sum(math.prod(shape) for shape in self._shapes)

    def split(self, vector: ArrayT) -> Parts[ArrayT]:
        """The parts of a vector `[size]`: views of a numpy array, slices of a jax one."""
        parts, at = [], 0
        for shape in self._shapes:
            size = math.prod(shape)
            parts.append(vector[at : at + size].reshape(shape))
            at += size
        return Parts(*parts)


@dataclasses.dataclass(frozen=True)
class Batch:
    """A packed step.

    Attributes:
        rows: All rows, and for each the places of its outputs among those of the step.
        layout: Of each dp group's part of the vector.
        vector: int32 `[dp * layout.size]`, for `forward`.
        outputs: Each int32 `[dp * S, F]`, for a call of `choose`; places count through all of them.
    """

    rows: Many[tuple[ScheduledRow, Many[int]]]
    layout: Layout
    vector: np.ndarray
    outputs: Many[np.ndarray]

    @property
    def has_drafts(self) -> bool:
        """Whether some row's next place depends on what is sampled."""
        return any(row.drafts for row, _ in self.rows)


def output_counts(buckets: Iterable[Bucket]) -> list[int]:
    """What the number of a dp group's outputs is padded to, S."""
    return sorted(bucket.num_rows for bucket in buckets if bucket.kind == "decode")


def pack(
    groups: Many[Many[ScheduledRow]],
    buckets: Many[Bucket],
    table_width: int,
    page_size: int,
    num_cache_groups: int = 1,
) -> Batch:
    """Packs the rows of each dp group into the smallest bucket that holds those of any.

    Single-token rows come first, the longest context first: the attention op works on neighbours
    together. The step is a decode if it is one for every group.

    Args:
        groups: The rows of each; some group has one.
        buckets: All there are.
        table_width: W.
        page_size: Tokens a page holds.
        num_cache_groups: G.
    """
    layout = Layout(_smallest(groups, buckets), table_width, num_cache_groups)
    vector = np.zeros((len(groups), layout.size), np.int32)
    ordered = [sorted(rows, key=lambda r: (r.num_tokens > 1, -r.start)) for rows in groups]
    for rows, part in zip(ordered, vector, strict=True):
        _pack_group(layout.split(part), rows, page_size, is_decode=layout.bucket.kind == "decode")
    outputs, places = _pack_outputs([_outputs(rows) for rows in ordered], output_counts(buckets))
    packed = []
    for rows, own in zip(ordered, places, strict=True):
        packed += [(row, list(itertools.islice(own, row.num_outputs))) for row in rows]
    return Batch(packed, layout, vector.reshape(-1), outputs)


def _smallest(groups: Many[Many[ScheduledRow]], buckets: Many[Bucket]) -> Bucket:
    is_decode = all(row.count == 1 for rows in groups for row in rows)
    kind = "decode" if is_decode else "extend"
    num_tokens = max(sum(row.num_tokens for row in rows) for rows in groups)
    return min(
        (b for b in buckets if b.kind == kind and b.num_tokens >= num_tokens),
        key=lambda b: b.num_tokens,
    )


def _pack_group(
    parts: Parts[np.ndarray], rows: Many[ScheduledRow], page_size: int, *, is_decode: bool
) -> None:
    """All rows at once: numpy takes longer to begin than to fill in a row's few numbers."""
    parts.tokens[-1] = NO_SLOT
    if not rows:
        return
    starts, counts, slots = np.array(
        [(row.start, row.num_tokens, row.sequence.slot) for row in rows], np.int32
    ).T
    ends = np.cumsum(counts, dtype=np.int32)
    scheduled = np.repeat(np.arange(len(rows)), counts)  # by token
    positions = np.arange(len(scheduled), dtype=np.int32) + (starts + counts - ends)[scheduled]
    if is_decode:  # each token has a row
        row_of = np.arange(len(scheduled))
        pieces = [row for row in rows for _ in range(row.num_tokens)]
        row_ends, context_lens = row_of + 1, positions + 1
    else:
        row_of, pieces = scheduled, rows
        row_ends, context_lens = ends, starts + counts
    for b, row in enumerate(pieces):
        for table, pages in zip(parts.page_tables, row.sequence.pages, strict=True):
            table[b, : len(pages)] = pages
    parts.query_start[1 : len(pieces) + 1] = row_ends
    parts.query_start[len(pieces) + 1 :] = row_ends[-1]
    parts.context_lens[: len(pieces)] = context_lens
    page, offset = np.divmod(positions, page_size)
    tokens = parts.tokens[:, : len(row_of)]
    tokens[0] = [token_id for row in rows for token_id in _token_ids(row)]
    tokens[1] = positions
    tokens[2:-1] = parts.page_tables[:, row_of, page] * page_size + offset
    tokens[-1] = slots[scheduled]


def _token_ids(row: ScheduledRow) -> list[int]:
    """The row's tokens, drafts last; those that the host does not know yet are pending."""
    known = row.sequence.token_ids[row.start : row.start + row.count]
    return known + [PENDING] * (row.count - len(known)) + list(row.drafts)


def _outputs(rows: Many[ScheduledRow]) -> np.ndarray:
    """The fields of the rows' outputs, in order, int32 `[n, F]`."""
    fixed, changing, first = [], [], 0
    for row in rows:
        slot, tokens = row.sequence.slot, row.sequence.token_ids
        for i in range(row.num_scored):
            end = row.start + i + 1
            fixed.append(_SCORING_OUTPUT)
            changing.append((end, first + i, NO_SLOT, slot, tokens[end], 0))
        if row.samples:
            last = row.count - 1
            for i in range(last, row.num_tokens):
                fixed.append(row.sequence.sampling_fields)
                changing.append((row.start + i + 1, first + i, slot, slot, -1, 0))
        first += row.num_tokens
    if not fixed:
        return empty_outputs(0)
    fields = np.array(fixed)
    fields[:, :_NUM_CHANGING] = changing
    return fields


def _pack_outputs(
    groups: Many[np.ndarray], counts: Many[int]
) -> tuple[list[np.ndarray], list[Iterator[int]]]:
    """The outputs of each group as arrays of all, and where each of a group's went, in order.

    There is one array at least: its result says that the step is done.
    """
    num_left = max(len(fields) for fields in groups)
    arrays: list[np.ndarray] = []
    places: list[list[Iterable[int]]] = [[] for _ in groups]
    first = before = 0  # of a group, and of all
    while num_left > 0 or not arrays:
        size = next((n for n in counts if n >= num_left), counts[-1])
        array = empty_outputs(len(groups) * size)
        for g, fields in enumerate(groups):
            own = fields[first : first + size]
            array[g * size : g * size + len(own)] = own
            places[g].append(range(before + g * size, before + g * size + len(own)))
        arrays.append(array)
        first, before, num_left = first + size, before + len(array), num_left - size
    return arrays, [itertools.chain.from_iterable(each) for each in places]


def sampling_fields(sequence: Sequence, seed: int) -> np.ndarray:
    """A request's fields `[F]` of an output; those before prompt_lens change and are not set."""
    p = sequence.request.sampling
    fields = _EMPTY_OUTPUT.copy()
    fields[_NUM_CHANGING : NUM_OUTPUT_FIELDS - len(_FLOATS)] = (
        sequence.num_prompt_tokens,
        np.uint32(seed & 0xFFFFFFFF).view(np.int32),
        p.top_k,
        has_bias(p),
        has_penalty(p),
        bool(p.bad_words),
        len(p.allowed_token_ids),
        p.no_repeat_ngram_size,
        p.logprobs is not None or p.prompt_logprobs is not None,
    )
    fields[-len(_FLOATS) :] = np.array([getattr(p, f) for f in _FLOATS], np.float32).view(np.int32)
    return fields


def has_bias(p: SamplingParams) -> bool:
    """Whether single logits change: by a bias, or because a token may not end the request yet."""
    return bool(p.logit_bias) or p.min_tokens > 0


def has_penalty(p: SamplingParams) -> bool:
    """Whether logits depend on the tokens before."""
    return (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) != (1.0, 0.0, 0.0)


def uses_slot_state(p: SamplingParams) -> bool:
    """Whether sampling reads more of the request's slot than the tokens in flight."""
    reads_tokens = has_penalty(p) or bool(p.bad_words) or p.no_repeat_ngram_size > 0
    return reads_tokens or has_bias(p) or bool(p.allowed_token_ids)


def unpack(
    vector: jax.Array, layout: Layout, tokens: jax.Array
) -> tuple[jax.Array, jax.Array, StepInputs]:
    """Inside the step: the packed vector as what the model takes.

    Args:
        vector: int32 `[layout.size]`.
        layout: Its layout.
        tokens: int32 `[slots, max_model_len]`, tokens by slot and position, for the pending ones.

    Returns:
        Token ids `[T]`, per-request slots of the tokens `[T]`, and the model's inputs.
    """
    parts = layout.split(vector)
    token_ids, positions, token_slots = parts.tokens[0], parts.tokens[1], parts.tokens[-1]
    pending = tokens.at[token_slots, positions].get(mode="clip")
    token_ids = jnp.where(token_ids == PENDING, pending, token_ids)
    step = StepInputs(
        positions=positions,
        slots=parts.tokens[2:-1],
        page_tables=parts.page_tables,
        query_start=parts.query_start,
        context_lens=parts.context_lens,
        kind=layout.bucket.kind,
    )
    return token_ids, token_slots, step


def output_inputs(outputs: jax.Array) -> OutputInputs:
    """The fields of outputs by name, from int32 `[S, F]`."""
    columns = [outputs[:, i] for i in range(NUM_OUTPUT_FIELDS)]
    return OutputInputs(
        *(
            lax.bitcast_convert_type(c, jnp.float32) if name in _FLOATS else c
            for name, c in zip(OutputInputs._fields, columns, strict=True)
        )
    )
