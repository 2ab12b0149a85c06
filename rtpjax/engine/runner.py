"""Holds everything on the device, and runs steps.

A step is two jitted programs (rtpjax.engine.step): `forward`, one for each bucket, and `choose`,
one for each variant (rtpjax.engine.wants) of each number of outputs that are padded to. Caches and
per-request state are donated: the programs update them in place. They are compiled ahead of the
first request, and only called afterwards: a shape that is not among the buckets is an error, never
a compilation.

All that reaches the devices goes through `execute`, in plain arrays: processes that share a mesh
make the same calls.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from pallas_kernels import paged_attention
from pallas_kernels.registry import UnsupportedError, using
from rtpjax.config import EngineConfig
from rtpjax.engine import kv_cache, seats
from rtpjax.engine.batch import (
    COLUMN,
    NO_SLOT,
    NUM_OUTPUT_FIELDS,
    Batch,
    Bucket,
    Layout,
    empty_outputs,
    output_counts,
    uses_slot_state,
)
from rtpjax.engine.device_call import DeviceCall
from rtpjax.engine.limits import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_BIASES
from rtpjax.engine.sampling import ANY_TOKEN, EXCLUDED, Sampled, SlotState
from rtpjax.engine.sequence import Sequence
from rtpjax.engine.step import (
    COMPILER_OPTIONS,
    Model,
    choose,
    choose_options,
    forward,
    unpack_sampled,
)
from rtpjax.engine.wants import Wants, least, variants_of, wants_of
from rtpjax.errors import ConfigError
from rtpjax.models import ModelConfig
from rtpjax.sharding import DP, upload

logger = logging.getLogger(__name__)

KeyT = TypeVar("KeyT")

_COMPILE_STACK_BYTES = 64 << 20  # XLA recurses deeply on unrolled models
_COMPILE_THREADS = 4
_BAD_WORDS = MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS


@dataclass(frozen=True)
class Forwarded:
    """A step whose tokens are still to be chosen, before the next one is started.

    Attributes:
        batch: What was asked.
    """

    batch: Batch


@dataclass(frozen=True)
class StepHandle:
    """A dispatched step: what was asked, and where the answers will be (step.unpack_sampled)."""

    batch: Batch
    sampled: list[jax.Array]


def buckets_of(config: EngineConfig, platform: str) -> list[Bucket]:
    """All shapes that a dp group's steps are padded to: powers of two, each kind along one
    dimension.

    On the CPU a decode has at least 2 rows: half-precision products miss XLA's fast path at one.
    """
    rows = _powers(2 if platform == "cpu" else 1, config.max_num_seqs)
    tokens = _powers(min(32, config.max_num_batched_tokens), config.max_num_batched_tokens)
    return [Bucket("decode", n, n) for n in rows] + [
        Bucket("extend", n, config.max_num_seqs) for n in tokens
    ]


def _powers(first: int, last: int) -> list[int]:
    """first, 2 * first, ... and the first one that reaches last."""
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(min(2 * sizes[-1], max(last, first)))
    return sizes


class Runner:
    """The device's side of the engine.

    Whatever changes what the devices hold goes through `execute`, so that the other processes of a
    mesh over many hosts can do the same (rtpjax.distributed).

    Args:
        config: Resolved settings.
        model_config: The model's shape.
        params: Parameters by name, in the order of rtpjax.models.abstract_state.
        mesh: Devices.
        num_tokens: Tokens that the tokenizer knows; ids beyond are never sampled.
    """

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        params: Mapping[str, jax.Array],
        mesh: Mesh,
        num_tokens: int,
    ):
        self.config = config
        self.mesh = mesh
        self.num_tokens = num_tokens
        self._mask_words = -(-model_config.vocab_size // 32)
        self._vocab_size = model_config.vocab_size
        self._model = Model.of(model_config, config.precision, mesh)
        self._params = tuple(params.values())
        self._head = self._model.head_of(self._params)
        self._platform = mesh.devices.flat[0].platform
        self.buckets = buckets_of(config, self._platform)
        self.num_traces = 0
        self._num_expected_traces = 0
        self._variants = variants_of(self._platform)
        self.choices = [(n, w) for n in output_counts(self.buckets) for w in self._variants]
        self._forward: dict[Bucket, Any] = {}
        self._choose: dict[tuple[int, Wants], Any] = {}
        self._num_groups = mesh.shape[DP]
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._by_group = NamedSharding(mesh, PartitionSpec(DP))
        self._slot_owners: dict[int, tuple[Sequence, int]] = {}
        self._hidden_shape = (max(b.num_tokens for b in self.buckets), model_config.hidden_size)
        self._device_calls: dict[str, Callable[..., Any]] = {
            "reset": self._device_reset,
            "fill_slot": self._device_fill_slot,
            "fill_masks": self._device_fill_masks,
            "forward": self._device_forward,
            "choose": self._device_choose,
        }
        self.reset()

    def execute(self, call: DeviceCall) -> Any:
        """Starts what a call says on the devices; returns what a `choose` makes, else None."""
        return self._device_calls[call.name](call.number, *call.arrays)

    def reset(self) -> None:
        """Fresh caches and per-request state; whatever they held is lost."""
        self.execute(DeviceCall("reset"))
        self._slot_owners.clear()

    def _device_reset(self, _: int) -> None:
        c = self.config
        self._caches: Any = None  # memory may not hold the old ones beside the fresh ones
        self._caches = kv_cache.allocate(
            self._model.cache_specs,
            [group.num_pages for group in c.cache_groups],
            c.page_size,
            c.precision.cache,
            self.mesh,
        )

        num_seats = self._num_groups * c.max_num_seqs
        self._state = seats.allocate(num_seats, c.max_model_len, self._vocab_size, self._by_group)
        hidden = self._abstract(*self._hidden_shape, dtype=c.precision.activations)
        self._hidden = jnp.zeros(hidden.shape, hidden.dtype, device=self._by_group)

    def compile(self, progress: Callable[[int], object] | None = None) -> None:
        """Compiles all programs, in parallel, and runs each once on padding."""
        started = time.perf_counter()
        previous = threading.stack_size(_COMPILE_STACK_BYTES)
        with ThreadPoolExecutor(_COMPILE_THREADS) as pool:
            # The threads start here, with the larger stack. What this thread traces for
            # (pallas_kernels.registry) they do too.
            forwards = {
                b: pool.submit(contextvars.copy_context().run, self._compile_forward, b)
                for b in self.buckets
            }
            chooses = {c: pool.submit(self._compile_choose, *c) for c in self.choices}
            threading.stack_size(previous)
            report = progress or (lambda count: None)
            self._forward = _results(forwards, report)
            self._choose = _results(chooses, report)
        for bucket in self.buckets:
            self.forward(_padding(self._layout(bucket), self._num_groups))
        for number, (count, _) in enumerate(self.choices):
            outputs = empty_outputs(self._num_groups * count)
            jax.block_until_ready(self.execute(DeviceCall("choose", number, (outputs,))))
        filling = partial(jax.jit, donate_argnums=0, out_shardings=self._by_group)
        self._fill_slot, self._fill_masks = filling(_fill_slot), filling(_fill_masks)
        self.execute(DeviceCall("fill_slot", 0, self._slot_rows(None)))
        for size in self._mask_counts():
            self._upload_masks(size, {})
        self._num_expected_traces = self.num_traces
        logger.info(
            "Compiled %d programs in %.1f s", self.num_programs, time.perf_counter() - started
        )

    @property
    def num_programs(self) -> int:
        """How many compile() makes."""
        return len(self.buckets) + len(self.choices)

    @property
    def num_recompiles(self) -> int:
        """Traces since compile(); anything but 0 is a bug."""
        return self.num_traces - self._num_expected_traces if self._num_expected_traces else 0

    def forward(self, batch: Batch) -> Forwarded:
        """Starts a step up to its hidden states; the device works on it when this returns."""
        for row, _ in batch.rows:
            self._claim_slot(row.sequence)
        number = self.buckets.index(batch.layout.bucket)
        self.execute(DeviceCall("forward", number, (batch.vector,)))
        return Forwarded(batch)

    def _device_forward(self, number: int, vector: np.ndarray) -> None:
        program = self._forward[self.buckets[number]]
        self._caches, tokens, self._hidden = program(
            self._params,
            upload(vector, self._by_group),
            self._caches,
            self._state.tokens,
            self._hidden,
        )
        self._state = self._state._replace(tokens=tokens)

    def choose(
        self, forwarded: Forwarded, masks: Mapping[int, np.ndarray] | None = None
    ) -> StepHandle:
        """Has the step's tokens chosen.

        Args:
            forwarded: The step.
            masks: Tokens that may be chosen, int32 `[ceil(V / 32)]`, by the output's place among
                those of the step; outputs that are not there may choose any.
        """
        outputs = forwarded.batch.outputs
        if masks:
            self._set_masks(outputs, masks)
        return StepHandle(forwarded.batch, [self._choose_each(each) for each in outputs])

    def _set_masks(self, outputs: Many[np.ndarray], masks: Mapping[int, np.ndarray]) -> None:
        """Writes masks to their slots, and flags the outputs that they are for."""
        by_slot: dict[int, np.ndarray] = {}
        first = 0
        for each in outputs:
            own = {place - first: mask for place, mask in masks.items()}
            for i, mask in own.items():
                if 0 <= i < len(each):
                    each[i, COLUMN["has_mask"]] = 1
                    group = i // (len(each) // self._num_groups)
                    slot = group * self.config.max_num_seqs + int(each[i, COLUMN["slots"]])
                    by_slot[slot] = mask
            first += len(each)
        self._upload_masks(len(by_slot), by_slot)

    def _choose_each(self, outputs: np.ndarray) -> jax.Array:
        wants = least(self._variants, wants_of(outputs))
        number = self.choices.index((len(outputs) // self._num_groups, wants))
        # All devices have the same: one sends it, which costs the host less than asking all.
        sampled = self.execute(DeviceCall("choose", number, (outputs,))).addressable_data(0)
        sampled.copy_to_host_async()
        return sampled

    def _device_choose(self, number: int, outputs: np.ndarray) -> jax.Array:
        sampled, tokens = self._choose[self.choices[number]](
            self._head, self._hidden, upload(outputs, self._by_group), *self._tokens_and_rest()
        )
        self._state = self._state._replace(tokens=tokens)
        return sampled

    def collect(self, handle: StepHandle) -> Sampled:
        """Waits for a step's result; numpy arrays, by place of its outputs."""
        results = [np.asarray(sampled) for sampled in handle.sampled]
        return unpack_sampled(results[0] if len(results) == 1 else np.concatenate(results))

    def _layout(self, bucket: Bucket) -> Layout:
        return Layout(bucket, self.config.table_width, len(self.config.cache_groups))

    def _compile_forward(self, bucket: Bucket) -> Callable[..., Any]:
        layout = self._layout(bucket)
        step = self._counted(partial(forward, self._model, layout))
        caches = jax.tree.map(lambda pages: pages.sharding, self._caches)
        shardings = caches, self._by_group, self._by_group
        jitted = jax.jit(step, donate_argnums=(2, 3, 4), out_shardings=shardings)
        vector = self._abstract(layout.size)
        updated = self._caches, self._state.tokens, self._hidden
        name = self.config.attention_implementation
        with using({} if name is None else {paged_attention.OP.name: name}):
            try:
                lowered = jitted.lower(self._params, vector, *updated)
            except UnsupportedError as error:
                raise ConfigError(f"ATTENTION_IMPLEMENTATION is {name!r}: {error}") from error
        return lowered.compile(COMPILER_OPTIONS)

    def _compile_choose(self, count: int, wants: Wants) -> Callable[..., Any]:
        step = self._counted(partial(choose, self._model, self.num_tokens, wants))
        outputs = self._abstract(count, NUM_OUTPUT_FIELDS)
        # Each process of the mesh has the tokens of all groups, in one array.
        shardings = self._replicated, self._by_group
        jitted = jax.jit(step, donate_argnums=3, out_shardings=shardings)
        lowered = jitted.lower(self._head, self._hidden, outputs, *self._tokens_and_rest())
        return lowered.compile(choose_options(self._platform, wants))

    def _tokens_and_rest(self) -> tuple[jax.Array, SlotState]:
        """The state, what choose writes apart from what it reads."""
        return self._state.tokens, self._state._replace(tokens=None)  # type: ignore[arg-type]

    def _abstract(self, *shape: int, dtype: DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
        """An array with a part of this shape for each group."""
        every = (self._num_groups * shape[0], *shape[1:])
        return jax.ShapeDtypeStruct(every, dtype, sharding=self._by_group)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which counts its traces."""

        def step(*args: Any) -> Any:
            self.num_traces += 1
            return function(*args)

        return step

    def _claim_slot(self, sequence: Sequence) -> None:
        """Fills the sequence's slot if it is new there and its sampling reads the slot."""
        owner = (sequence, sequence.epoch)
        at = sequence.group * self.config.max_num_seqs + sequence.slot
        if self._slot_owners.get(at) == owner:
            return
        self._slot_owners[at] = owner
        if uses_slot_state(sequence.request.sampling):
            self.execute(DeviceCall("fill_slot", at, self._slot_rows(sequence)))

    def _device_fill_slot(self, at: int, *rows: np.ndarray) -> None:
        self._state = self._fill_slot(self._state, np.int32(at), *rows)

    def _upload_masks(self, size: int, masks: dict[int, np.ndarray]) -> None:
        """Writes masks by place, with a program for each power of two: few of them cost little."""
        size = next(n for n in self._mask_counts() if n >= size)
        slots = np.full(size, NO_SLOT, np.int32)
        rows = np.zeros((size, self._mask_words), np.int32)
        for i, (slot, mask) in enumerate(masks.items()):
            num_words = min(len(mask), self._mask_words)
            slots[i], rows[i, :num_words] = slot, mask[:num_words]
        self.execute(DeviceCall("fill_masks", 0, (slots, rows)))

    def _device_fill_masks(self, _: int, slots: np.ndarray, rows: np.ndarray) -> None:
        self._state = self._fill_masks(self._state, slots, rows)

    def _mask_counts(self) -> list[int]:
        return _powers(1, self._num_groups * self.config.max_num_seqs)

    def _slot_rows(self, sequence: Sequence | None) -> tuple[np.ndarray, ...]:
        """One slot's rows of SlotState but for its mask, as numpy; of an empty slot for None."""
        tokens = np.zeros(self.config.max_model_len + 1, np.int32)
        ids = np.full(MAX_BIASES, NO_SLOT, np.int32)
        values = np.zeros(MAX_BIASES, np.float32)
        until = np.zeros(MAX_BIASES, np.int32)
        bad_words = np.full(_BAD_WORDS, NO_SLOT, np.int32)
        if sequence is not None:
            tokens[: len(sequence.token_ids)] = sequence.token_ids
            for i, (token_id, value, end) in enumerate(sequence.biases):
                ids[i], values[i], until[i] = token_id, value, end
            for i, word in enumerate(sequence.request.sampling.bad_words):
                bad_words[i, : -len(word)] = ANY_TOKEN
                bad_words[i, -len(word) :] = word
        return tokens, ids, values, until, bad_words


def biases_of(sequence: Sequence, end_token_ids: frozenset[int]) -> list[tuple[int, float, int]]:
    """The allowed tokens, the logit bias, and what may not end the request yet.

    Returns:
        (token id, value, position before which it counts).
    """
    sampling = sequence.request.sampling
    first_end = min(sequence.num_prompt_tokens + sampling.min_tokens, NO_SLOT)
    ends = end_token_ids if sampling.min_tokens else frozenset()
    return [
        *((token_id, 0.0, 0) for token_id in sampling.allowed_token_ids),
        *((token_id, value, NO_SLOT) for token_id, value in sampling.logit_bias),
        *((token_id, EXCLUDED, first_end) for token_id in sorted(ends)),
    ]


def _results(
    futures: Mapping[KeyT, Future[Any]], report: Callable[[int], object]
) -> dict[KeyT, Any]:
    results = {}
    for key, future in futures.items():
        results[key] = future.result()
        report(1)
    return results


def _fill_slot(state: SlotState, slot: jax.Array, *rows: jax.Array) -> SlotState:
    filled = [array.at[slot].set(row) for array, row in zip(state[:-1], rows, strict=True)]
    return SlotState(*filled, masks=state.masks)


def _fill_masks(state: SlotState, slots: jax.Array, masks: jax.Array) -> SlotState:
    return state._replace(masks=state.masks.at[slots].set(masks, mode="drop"))


def _padding(layout: Layout, num_groups: int) -> Batch:
    vector = np.zeros(layout.size, np.int32)
    layout.split(vector).tokens[-1] = NO_SLOT
    return Batch((), layout, np.tile(vector, num_groups), ())
