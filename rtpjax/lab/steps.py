"""Whole steps of a model with random weights, as the runner compiles them, without an engine."""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

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
from rtpjax.engine import kv_cache
from rtpjax.engine.batch import NO_SLOT, Bucket, Layout, RowInputs
from rtpjax.engine.step import COMPILER_OPTIONS
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
    parts.rows[:, RowInputs._fields.index("sample_slots")] = NO_SLOT
    rng, at, next_page = np.random.default_rng(0), 0, 1
    for row, (start, count) in enumerate(queries):
        positions = np.arange(start, start + count)
        num_pages = kv_cache.pages_for(start + count, PAGE_SIZE)
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
        one = np.float32(1).view(np.int32)
        fields = {"context_lens": start + count, "sample_at": at - 1, "sample_slots": row}
        fields |= {"slots": row, "target_ids": -1, "prompt_lens": start + count}
        fields |= {"top_p": one, "repetition_penalty": one}
        for name, value in fields.items():
            parts.rows[row, RowInputs._fields.index(name)] = value
    return vector


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
        pages = self.max_rows * kv_cache.pages_for(self.context, PAGE_SIZE)
        pages += kv_cache.pages_for(self.num_extended, PAGE_SIZE)
        return plan_step.StepShape(bucket, self.max_model_len, PAGE_SIZE, 1 + pages, self.max_rows)

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
    ) -> Any:
        """The runner's `forward` for a bucket.

        Args:
            bucket: The step's shape.
            options: Go to XLA.
            named: Implementations by op (pallas_kernels.registry.using).
        """
        arguments = (self.model, self.precision, self.shape(bucket), self.mesh)
        with using(named or {}):
            lowered = plan_step.forward(*arguments).lower(*plan_step.abstract_arguments(*arguments))
        return lowered.compile(COMPILER_OPTIONS | (options or {}))

    def allocate(self) -> None:
        """Random weights and caches."""
        shape = self.shape(self.decode(1))
        arguments = plan_step.abstract_arguments(self.model, self.precision, shape, self.mesh)
        params, _, caches, tokens = arguments
        specs, _ = limits.declared(self.model, self.precision)
        checkpoint = DummyCheckpoint(read_config(self.lab.model)).in_formats(specs)
        self.params = tuple(checkpoint.restore(dict(zip(specs, params, strict=True))).values())
        self.caches = jax.tree.map(
            lambda x: _maker(x.shape, x.dtype, x.sharding)(np.uint32(0)), caches
        )
        self.tokens = jnp.zeros(tokens.shape, tokens.dtype, device=tokens.sharding)

    def vector(self, bucket: Bucket, *, num_decodes: int = 0) -> jax.Array:
        """A step of a bucket: rows of the whole context, or one prompt behind some of them."""
        layout = self.shape(bucket).layout(self.needs.cache_specs)
        if bucket.kind == "decode":
            queries = [(self.context - 1, 1)] * bucket.num_rows
        else:
            decodes = [(self.context - 1, 1)] * num_decodes
            queries = [*decodes, (0, bucket.num_tokens - num_decodes)]
        return jax.device_put(packed(layout, queries))

    def call(self, program: Any, vector: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Starts a step; logits and the rows' fields."""
        logits, rows, self.caches, self.tokens = program(
            self.params, vector, self.caches, self.tokens
        )
        return logits, rows
