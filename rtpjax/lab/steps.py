"""Whole steps of a model with random weights, as the runner compiles them, without an engine."""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from pallas_kernels.registry import using
from rtpjax import gpus, sharding
from rtpjax.checkpoint import read_config
from rtpjax.config import EngineSettings, precision_of
from rtpjax.dummy_checkpoint import DummyCheckpoint
from rtpjax.engine import seats
from rtpjax.engine.batch import COLUMN, NO_SLOT, Bucket, Layout, empty_outputs
from rtpjax.engine.cache_groups import pages_for
from rtpjax.engine.step import COMPILER_OPTIONS, Model
from rtpjax.engine.wants import NOTHING, Wants
from rtpjax.gpus import Gpu
from rtpjax.lab.stage import Lab
from rtpjax.models import ModelConfig
from rtpjax.plan import limits
from rtpjax.plan import step as plan_step

PAGE_SIZE = 64
ROWS, SMALL_ROWS = (1, 8, 64), (1, 2)
CONTEXT, SMALL_CONTEXT = 1024, 64
EXTEND, SMALL_EXTEND = 2048, 32
_OF_NORMAL = 0.02  # the spread of random weights: activations stay finite
_MOST_DRAWN = 1 << 28  # numbers; larger arrays repeat them


def model_config(lab: Lab) -> ModelConfig:
    """The lab's model."""
    return ModelConfig.from_hf(read_config(lab.model))


@dataclasses.dataclass(frozen=True)
class DataSheet:
    """What the GPU's data sheet allows; None for a GPU that nobody has described."""

    gpu: Gpu | None

    @staticmethod
    def of(lab: Lab) -> DataSheet:
        if lab.gpu is not None:
            return DataSheet(gpus.load(lab.gpu))
        return DataSheet(gpus.of_device(jax.devices()[0].device_kind))

    def us(self, num_bytes: float) -> float | None:
        """Microseconds to read so many bytes."""
        return None if self.gpu is None else 1e6 * num_bytes / self.gpu.memory_bandwidth

    def gb_s(self) -> float | None:
        return None if self.gpu is None else self.gpu.memory_bandwidth / 1e9

    def tflop_s(self, dtype: str = "bfloat16") -> float | None:
        return None if self.gpu is None else self.gpu.peak(dtype) / 1e12


def rows_of(lab: Lab) -> tuple[int, ...]:
    """Rows of the decode steps that are measured."""
    return lab.pick(ROWS, SMALL_ROWS)


@functools.cache
def _maker(shape: tuple[int, ...], dtype: DTypeLike, where: Sharding | None) -> Any:
    times = -(-math.prod(shape) // _MOST_DRAWN)
    part = -(-shape[0] // times), *shape[1:]

    def make(seed: jax.Array) -> jax.Array:
        if jnp.issubdtype(dtype, jnp.integer):
            info = jnp.iinfo(dtype)
            drawn = jax.random.randint(jax.random.key(seed), part, info.min // 2, info.max // 2)
        else:
            drawn = jax.random.normal(jax.random.key(seed), part, jnp.bfloat16)
            drawn = drawn * jnp.bfloat16(_OF_NORMAL)
        drawn = drawn.astype(dtype)
        return jnp.concatenate([drawn] * times)[: shape[0]] if times > 1 else drawn

    return jax.jit(make, out_shardings=where)


def random_array(name: str, shape: Sequence[int], dtype: DTypeLike = jnp.bfloat16) -> jax.Array:
    """Random numbers on the device: zeros would make memory and tensor cores look faster."""
    return _maker(tuple(shape), jnp.dtype(dtype), None)(np.uint32(zlib.crc32(name.encode())))


def packed(layout: Layout, queries: Sequence[tuple[int, int]]) -> np.ndarray:
    """The vector of a step whose row i computes tokens [start, start + count) of its context.

    Args:
        layout: Of the vector.
        queries: start and count of each row; they fill the bucket's tokens.
    """
    vector = np.zeros(layout.size, np.int32)
    parts = layout.split(vector)
    parts.tokens[-1], parts.query_start[:] = NO_SLOT, sum(count for _, count in queries)
    rng, at, next_page = np.random.default_rng(0), 0, 1
    for row, (start, count) in enumerate(queries):
        positions = np.arange(start, start + count)
        num_pages = pages_for(start + count, PAGE_SIZE)
        parts.page_tables[:, row, :num_pages] = next_page + np.arange(num_pages)
        next_page += num_pages
        pages = parts.page_tables[0, row][positions // PAGE_SIZE]
        parts.tokens[:, at : at + count] = np.stack(
            [
                rng.integers(0, 1000, count),
                positions,
                pages * PAGE_SIZE + positions % PAGE_SIZE,
                np.full(count, row),
            ]
        )
        parts.query_start[row], at = at, at + count
        parts.context_lens[row] = start + count
    return vector


def greedy_outputs(rows: int, context: int) -> np.ndarray:
    """The outputs of a decode step whose rows are greedy, int32 `[rows, F]`."""
    outputs = empty_outputs(rows)
    of_row = {"at": np.arange(rows), "sample_slots": np.arange(rows), "slots": np.arange(rows)}
    for name, values in of_row.items():
        outputs[:, COLUMN[name]] = values
    for name in ("context_lens", "prompt_lens"):
        outputs[:, COLUMN[name]] = context
    outputs[:, COLUMN["target_ids"]] = -1
    return outputs


class Program(NamedTuple):
    """The two programs of a step, and the outputs that the second one is called with."""

    forward: Any
    choose: Any
    outputs: np.ndarray


@dataclasses.dataclass
class Steps:
    """Compiled steps of the lab's model, and the arrays that they are called with."""

    lab: Lab

    def __post_init__(self) -> None:
        lab = self.lab
        self.model = model_config(lab)
        self.platform = jax.default_backend()
        self.precision = precision_of(EngineSettings(act_type="BF16"), self.platform)
        self.mesh = sharding.make_mesh(1, model=self.model)
        self.context = lab.pick(CONTEXT, SMALL_CONTEXT)
        self.num_extended = lab.pick(EXTEND, SMALL_EXTEND)
        self.max_rows = rows_of(lab)[-1]
        self.max_model_len = max(self.context, self.num_extended)
        self.needs = limits.needs(self.model, self.precision, 1)
        self.gpu = DataSheet.of(lab).gpu

    def shape(self, bucket: Bucket) -> plan_step.StepShape:
        """Of a step; all share the caches."""
        pages = self.max_rows * pages_for(self.context, PAGE_SIZE)
        pages += pages_for(self.num_extended, PAGE_SIZE)
        return plan_step.StepShape(
            *(bucket, self.max_model_len, PAGE_SIZE, 1 + pages, self.max_rows),
            max_num_batched_tokens=self.num_extended,
        )

    def decode(self, rows: int) -> Bucket:
        return Bucket("decode", rows, rows)

    def extend(self) -> Bucket:
        return Bucket("extend", self.num_extended, self.max_rows)

    def compile(
        self,
        bucket: Bucket,
        options: dict[str, Any] | None = None,
        *,
        named: Mapping[str, str] | None = None,
    ) -> Program:
        """The runner's programs for a bucket, the second one for greedy rows.

        Args:
            bucket: The step's shape; of a prompt's step one token is chosen.
            options: Go to XLA.
            named: Implementations by op (pallas_kernels.registry.using).
        """
        arguments = (self.model, self.precision, self.shape(bucket), self.mesh)
        with using(named or {}):
            lowered = plan_step.forward(*arguments).lower(*plan_step.abstract_arguments(*arguments))
        forward = lowered.compile(COMPILER_OPTIONS | (options or {}))
        rows = bucket.num_rows if bucket.kind == "decode" else 1
        return Program(forward, self.compile_choose(rows, NOTHING, options), self.outputs(rows))

    def compile_choose(self, rows: int, wants: Wants, options: dict[str, Any] | None = None) -> Any:
        """The runner's program that chooses a token for each row of a decode step."""
        return plan_step.compile_choose(
            *(self.model, self.precision, self.shape(self.decode(rows)), self.mesh),
            num_outputs=rows,
            wants=wants,
            options=options,
        )

    def outputs(self, rows: int) -> np.ndarray:
        """Of a decode step whose rows are greedy."""
        return greedy_outputs(rows, self.context)

    def allocate(self) -> None:
        """Random weights and caches."""
        shape = self.shape(self.decode(1))
        arguments = plan_step.abstract_arguments(self.model, self.precision, shape, self.mesh)
        params, _, caches, tokens, hidden = arguments
        specs, _ = limits.declared(self.model, self.precision)
        checkpoint = DummyCheckpoint(read_config(self.lab.model)).in_formats(specs)
        self.params = tuple(checkpoint.restore(dict(zip(specs, params, strict=True))).values())
        self.caches = jax.tree.map(
            lambda x: _maker(x.shape, x.dtype, x.sharding)(np.uint32(0)), caches
        )
        self.tokens = jnp.zeros(tokens.shape, tokens.dtype, device=tokens.sharding)
        self.hidden = jnp.zeros(hidden.shape, hidden.dtype, device=hidden.sharding)
        by_group = tokens.sharding
        state = seats.allocate(self.max_rows, self.max_model_len, self.model.vocab_size, by_group)
        self.state = state._replace(tokens=None)  # type: ignore[arg-type]  # they are apart
        model = Model.of(self.model, self.precision, self.mesh)
        self.head = model.head_of(self.params)

    def vector(self, bucket: Bucket, *, num_decodes: int = 0) -> jax.Array:
        """What `forward` is called with: rows of the whole context, or one prompt behind some."""
        layout = self.shape(bucket).layout(self.needs.cache_specs)
        if bucket.kind == "decode":
            queries = [(self.context - 1, 1)] * bucket.num_rows
        else:
            decodes = [(self.context - 1, 1)] * num_decodes
            queries = [*decodes, (0, bucket.num_tokens - num_decodes)]
        return jax.device_put(packed(layout, queries))

    def call(self, program: Program, vector: jax.Array) -> jax.Array:
        """Starts a step; its tokens."""
        self.forward(program, vector)
        return self.choose(program.choose, program.outputs)

    def forward(self, program: Program, vector: jax.Array) -> jax.Array:
        """Starts the first program; what it makes, which the next step takes away."""
        self.caches, self.tokens, self.hidden = program.forward(
            self.params, vector, self.caches, self.tokens, self.hidden
        )
        return self.hidden

    def choose(self, program: Any, outputs: np.ndarray) -> jax.Array:
        """Starts the second program; its tokens."""
        sampled, self.tokens = program(self.head, self.hidden, outputs, self.tokens, self.state)
        return sampled
