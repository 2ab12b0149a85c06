"""What a model needs on each GPU, and the least time that bandwidth and arithmetic allow.

Everything is counted per device of a tensor-parallel mesh, from declared shapes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
from jax.sharding import AbstractMesh

from rtpjax import sharding
from rtpjax.engine import kv_cache
from rtpjax.engine.cache_groups import CacheGroup
from rtpjax.gpus import Gpu
from rtpjax.models import (
    ModelConfig,
    Pages,
    ParamSpec,
    Precision,
    abstract_state,
    build,
)

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Needs:
    """A model's demands on one device.

    Attributes:
        model: Its shape.
        weights_bytes: All parameters.
        read_bytes: What every step reads of them: all but an embedding of its own.
        row_bytes: One row of that embedding; 0 if it is tied, and read as a whole.
        layer_params: Entries of the matrices that every token is multiplied with.
        head_params: Entries of the output matrix, for each token that is sampled.
        head_bytes: What that matrix takes.
        cache_specs: What the layers cache, on all devices together.
        precision: Number formats.
        tp_size: Devices.
    """

    model: ModelConfig
    weights_bytes: int
    read_bytes: int
    row_bytes: int
    layer_params: int
    head_params: int
    head_bytes: int
    cache_specs: tuple[Pages, ...]
    precision: Precision
    tp_size: int

    @property
    def _split(self) -> sharding.Split:
        return sharding.Split.of(self.model, self.tp_size)

    @property
    def token_bytes(self) -> int:
        """Cache that one token's keys and values take; its page's scales aside."""
        return kv_cache.token_bytes(self.cache_specs, self.precision.cache) // self._split.kv_heads

    def page_bytes(self, page_size: int) -> int:
        """Cache that a page takes, scales included."""
        whole = kv_cache.page_bytes(self.cache_specs, page_size, self.precision.cache)
        return whole // self._split.kv_heads

    def cache_bytes(self, groups: Iterable[CacheGroup], page_size: int) -> int:
        """Cache that the pages of some groups take."""
        specs, dtype = self.cache_specs, self.precision.cache
        whole = sum(
            group.num_pages
            * kv_cache.page_bytes([s for s in specs if s.window == group.window], page_size, dtype)
            for group in groups
        )
        return whole // self._split.kv_heads

    def live_bytes(self, context_len: int) -> int:
        """Cache that a step reads for a context: layers with a window read no more than that."""
        lens = [min(context_len, spec.window or context_len) for spec in self.cache_specs]
        return sum(
            n * kv_cache.token_bytes([spec], self.precision.cache) // self._split.kv_heads
            for spec, n in zip(self.cache_specs, lens, strict=True)
        )

    def decode_bytes(self, rows: int, context_len: int) -> int:
        """Least bytes of a decode step: weights once, live cache once, the new entries."""
        weights = self.read_bytes + rows * self.row_bytes
        return weights + rows * (self.live_bytes(context_len) + self.token_bytes)

    def forward_bytes(self, rows: int, context_len: int) -> int:
        """Those of them that are for everything up to the hidden states."""
        return self.decode_bytes(rows, context_len) - self.head_bytes

    def decode_flops(self, rows: int, context_len: int) -> int:
        """Operations of a decode step on one device."""
        return rows * (2 * (self.layer_params + self.head_params) + self._pair_flops(context_len))

    def prefill_flops(self, num_tokens: int) -> int:
        """Operations of a prompt on one device; its last token is sampled."""
        pairs = sum(
            # The first tokens of a causal context see fewer: a triangle, then a band.
            min(n, num_tokens) * (min(n, num_tokens) + 1) // 2 + max(num_tokens - n, 0) * n
            for n in (spec.window or num_tokens for spec in self.cache_specs)
        )
        return 2 * (num_tokens * self.layer_params + self.head_params) + pairs * self._one_pair()

    def _pair_flops(self, context_len: int) -> int:
        seen = sum(min(context_len, spec.window or context_len) for spec in self.cache_specs)
        return seen * self._one_pair()

    def _one_pair(self) -> int:
        """Scores and weighted values of one query token and one key, over a device's heads."""
        return 4 * self.model.num_attention_heads * self.model.head_dim // self._split.heads


def needs(model: ModelConfig, precision: Precision, tp_size: int) -> Needs:
    """Counts a model's parameters and cache.

    Raises:
        ConfigError: tp_size does not divide the model's heads.
    """
    sharding.check_model_fits(model, tp_size)
    specs, cache_specs = declared(model, precision)
    shape = sharding.mesh_shape(tp_size, model=model)
    mesh = AbstractMesh(tuple(shape.values()), tuple(shape))
    sizes = {name: _shard_bytes(spec, mesh) for name, spec in specs.items()}
    head = _HEAD if _HEAD in specs else _EMBEDDING
    has_own = head == _HEAD
    embedding = specs[_EMBEDDING]
    return Needs(
        model=model,
        weights_bytes=sum(sizes.values()),
        read_bytes=sum(sizes.values()) - (sizes[_EMBEDDING] if has_own else 0),
        row_bytes=embedding.shape[1] * embedding.dtype.itemsize if has_own else 0,
        layer_params=_matrix_entries(specs, sizes, exclude=(_EMBEDDING, _HEAD)),
        head_params=_matrix_entries({head: specs[head]}, sizes),
        head_bytes=sum(n for name, n in sizes.items() if name.startswith(head)),
        cache_specs=cache_specs,
        precision=precision,
        tp_size=tp_size,
    )


@functools.lru_cache(maxsize=16)
def declared(
    model: ModelConfig, precision: Precision
) -> tuple[Mapping[str, ParamSpec], tuple[Pages, ...]]:
    """Parameters, and what the layers cache; declaring those of a large model takes a second."""
    return (
        abstract_state(model, precision),
        build(model, precision, abstract=True).cache_specs(),
    )


def _matrix_entries(
    specs: Mapping[str, ParamSpec], sizes: Mapping[str, int], exclude: Iterable[str] = ()
) -> int:
    """Numbers in the matrices: scales and zero points stand beside them, int4 has two in a byte."""
    return sum(
        sizes[name] // spec.dtype.itemsize * (2 if spec.dtype == jnp.uint8 else 1)
        for name, spec in specs.items()
        if len(spec.shape) > 1 and name.endswith(".weight") and name not in exclude
    )


def _shard_bytes(spec: ParamSpec, mesh: AbstractMesh) -> int:
    where = sharding.named_sharding(mesh, spec.axes, spec.shape)
    return math.prod(where.shard_shape(spec.shape)) * spec.dtype.itemsize


def least_tpot_s(needs: Needs, gpu: Gpu, rows: int, context_len: int) -> float:
    """No decode step of so many rows can be faster: a limit, not a measurement."""
    return max(
        needs.decode_bytes(rows, context_len) / gpu.memory_bandwidth,
        needs.decode_flops(rows, context_len) / _peak(needs, gpu),
    )


def least_ttft_s(needs: Needs, gpu: Gpu, prompt_len: int, max_num_batched_tokens: int) -> float:
    """No prompt of this length alone on the GPU can be faster: a limit, not a measurement."""
    steps = math.ceil(prompt_len / max_num_batched_tokens)
    moved = steps * needs.read_bytes + prompt_len * (needs.row_bytes + needs.token_bytes)
    return max(moved / gpu.memory_bandwidth, needs.prefill_flops(prompt_len) / _peak(needs, gpu))


def _peak(needs: Needs, gpu: Gpu) -> float:
    return gpu.peak(jnp.dtype(needs.precision.weights).name)
