"""Packs a scheduled step into one int32 vector, which the jitted step takes apart again.

One upload instead of a dozen: each has a fixed cost that is larger than copying its bytes. Floats
travel as their bits.

    | tokens (3 + G) x T | query_start B + 1 | page_tables G x B x W | rows B x F |

The layout depends on the bucket only, so both sides compute the same offsets. A decode bucket has
T == B rows of one token. An extend bucket has T tokens and always max_num_seqs rows. With several
dp groups there is such a vector for each, all of one layout, one after another.
"""

from __future__ import annotations

import dataclasses
import math
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


class RowInputs(NamedTuple):
    """What the step knows of each row besides its tokens. All `[B]`, int32 or float32.

    Attributes:
        context_lens: Tokens of context, this step's included; also the position of the token
            sampled.
        sample_at: Index in T of the token whose logits are sampled.
        sample_slots: Slot that the sampled token is written to; NO_SLOT when the row samples
            nothing.
        slots: The row's slot in the per-request device state.
        target_ids: Token to score in place of sampling one; -1 to sample.
        prompt_lens: Tokens of context that are prompt.
        seeds: Seed of the row's draws, as 32 bits.
        top_k: 0 keeps all.
        has_bias, has_penalty, has_bad_words, wants_logprobs: 0 or 1; a part of the step runs if
            any row needs it.
        num_allowed: How many of the row's biases name its allowed tokens; 0 allows all tokens.
        ngram_size: No n-gram of this many tokens comes twice; 0 for none.
        temperature: 0 is greedy.
        top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty: As in SamplingParams.
    """

    context_lens: jax.Array
    sample_at: jax.Array
    sample_slots: jax.Array
    slots: jax.Array
    target_ids: jax.Array
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


NUM_ROW_FIELDS = len(RowInputs._fields)
_FLOATS = RowInputs._fields[RowInputs._fields.index("temperature") :]
_EMPTY_ROW = np.zeros(NUM_ROW_FIELDS, np.int32)
_EMPTY_ROW[RowInputs._fields.index("sample_slots")] = NO_SLOT
_EMPTY_ROW[RowInputs._fields.index("top_p")] = np.float32(1).view(np.int32)
_EMPTY_ROW[RowInputs._fields.index("repetition_penalty")] = np.float32(1).view(np.int32)


class Parts(NamedTuple, Generic[ArrayT]):
    """The packed vector, taken apart.

    Attributes:
        tokens: `[3 + G, T]`: token ids, positions, cache slots (page * page_size + offset) in each
            cache group, and the per-request slots.
        query_start: `[B + 1]`.
        page_tables: `[G, B, W]`, of each cache group.
        rows: `[B, F]`, the fields of RowInputs.
    """

    tokens: ArrayT
    query_start: ArrayT
    page_tables: ArrayT
    rows: ArrayT


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
        return (3 + G, T), (B + 1,), (G, B, self.table_width), (B, NUM_ROW_FIELDS)

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
        rows: By place among the `[dp * B]` rows of the step, in order.
        layout: Of each dp group's part of the vector.
        vector: int32 `[dp * layout.size]`.
    """

    rows: dict[int, ScheduledRow]
    layout: Layout
    vector: np.ndarray

    @property
    def packed_rows(self) -> np.ndarray:
        """The fields of all rows, int32 `[dp * B, F]`, see row_inputs."""
        groups = self.vector.reshape(-1, self.layout.size)
        return np.concatenate([self.layout.split(group).rows for group in groups])


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
    packed: dict[int, ScheduledRow] = {}
    for g, (rows, part) in enumerate(zip(groups, vector, strict=True)):
        rows = sorted(rows, key=lambda r: (r.count > 1, -r.start))
        _pack_group(layout.split(part), rows, page_size)
        packed |= enumerate(rows, start=g * layout.bucket.num_rows)
    return Batch(packed, layout, vector.reshape(-1))


def _smallest(groups: Many[Many[ScheduledRow]], buckets: Many[Bucket]) -> Bucket:
    is_decode = all(row.count == 1 for rows in groups for row in rows)
    kind = "decode" if is_decode else "extend"
    num_tokens = max(sum(row.count for row in rows) for rows in groups)
    return min(
        (b for b in buckets if b.kind == kind and b.num_tokens >= num_tokens),
        key=lambda b: b.num_tokens,
    )


def _pack_group(parts: Parts[np.ndarray], rows: Many[ScheduledRow], page_size: int) -> None:
    """All rows at once: numpy takes longer to begin than to fill in a row's few numbers."""
    parts.tokens[-1] = NO_SLOT
    parts.rows[:] = _EMPTY_ROW
    if not rows:
        return
    for b, row in enumerate(rows):
        for table, pages in zip(parts.page_tables, row.sequence.pages, strict=True):
            table[b, : len(pages)] = pages
    counts = np.array([row.count for row in rows], np.int32)
    ends = np.cumsum(counts, dtype=np.int32)
    parts.query_start[1 : len(rows) + 1] = ends
    parts.query_start[len(rows) + 1 :] = ends[-1]
    fields = parts.rows[: len(rows)]
    fields[:] = [row.sequence.sampling_fields for row in rows]
    fields[:, :5] = [_changing_fields(row) for row in rows]
    fields[:, 1] = ends - 1
    row_of = np.repeat(np.arange(len(rows)), counts)
    context_lens, slots = fields[:, 0], fields[:, 3]
    positions = np.arange(len(row_of), dtype=np.int32) + (context_lens - ends)[row_of]
    page, offset = np.divmod(positions, page_size)
    tokens = parts.tokens[:, : len(row_of)]
    tokens[0] = [token_id for row in rows for token_id in _token_ids(row)]
    tokens[1] = positions
    tokens[2:-1] = parts.page_tables[:, row_of, page] * page_size + offset
    tokens[-1] = slots[row_of]


def _changing_fields(row: ScheduledRow) -> tuple[int, ...]:
    """The first five of RowInputs; sample_at depends on the rows before and is 0 here."""
    slot = row.sequence.slot
    return row.start + row.count, 0, slot if row.samples else NO_SLOT, slot, row.target


def _token_ids(row: ScheduledRow) -> list[int]:
    """The row's tokens; those that the host does not know yet are pending."""
    known = row.sequence.token_ids[row.start : row.start + row.count]
    return known + [PENDING] * (row.count - len(known))


def sampling_fields(sequence: Sequence, seed: int) -> np.ndarray:
    """A row's fields `[F]` as they stay from step to step; the first five change and are 0 here."""
    p = sequence.request.sampling
    fields = _EMPTY_ROW.copy()
    start = RowInputs._fields.index("prompt_lens")
    fields[start : NUM_ROW_FIELDS - len(_FLOATS)] = (
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
) -> tuple[jax.Array, jax.Array, StepInputs, jax.Array]:
    """Inside the step: the packed vector as what the model takes.

    Args:
        vector: int32 `[layout.size]`.
        layout: Its layout.
        tokens: int32 `[slots, max_model_len]`, tokens by slot and position, for the pending ones.

    Returns:
        Token ids `[T]`, per-request slots of the tokens `[T]`, the model's inputs, and the fields
        of the rows `[B, F]` (see row_inputs).
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
        context_lens=row_inputs(parts.rows).context_lens,
        kind=layout.bucket.kind,
    )
    return token_ids, token_slots, step, parts.rows


def row_inputs(packed_rows: jax.Array) -> RowInputs:
    """The fields of the rows by name, from int32 `[B, F]`."""
    columns = [packed_rows[:, i] for i in range(NUM_ROW_FIELDS)]
    return RowInputs(
        *(
            lax.bitcast_convert_type(c, jnp.float32) if name in _FLOATS else c
            for name, c in zip(RowInputs._fields, columns, strict=True)
        )
    )
