"""Compiles a model's step for GPUs that are not there, from shapes alone.

The programs are the runner's own (rtpjax.engine.step): `forward`, all of a step up to its hidden
states, and `choose`, which makes logits of some of them and chooses tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from pallas_kernels.registry import tracing_for
from rtpjax import sharding
from rtpjax.engine import step as engine_step
from rtpjax.engine.batch import NUM_OUTPUT_FIELDS, Bucket, Layout
from rtpjax.engine.cache_groups import pages_for
from rtpjax.engine.kv_cache import declare, windows_of
from rtpjax.engine.limits import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_BIASES
from rtpjax.engine.sampling import SlotState
from rtpjax.engine.wants import EVERYTHING, Wants
from rtpjax.gpus import Gpu
from rtpjax.models import Caches, ModelConfig, PagedCache, Pages, Precision
from rtpjax.models.cache_write import has_scales
from rtpjax.plan.limits import declared


@dataclasses.dataclass(frozen=True)
class StepShape:
    """What decides the shapes of a compiled step.

    Attributes:
        bucket: Kind, tokens and rows.
        max_model_len: Sets the width of page tables.
        page_size: Tokens a page holds.
        num_pages: Pages of each cache group.
        max_num_seqs: Slots of per-request state.
        max_num_batched_tokens: Most tokens of a step; None where it is this one's.
    """

    bucket: Bucket
    max_model_len: int
    page_size: int
    num_pages: int
    max_num_seqs: int
    max_num_batched_tokens: int | None = None

    def layout(self, specs: tuple[Pages, ...]) -> Layout:
        """Of the packed vector, for a model whose layers keep this."""
        width = pages_for(self.max_model_len, self.page_size)
        return Layout(self.bucket, width, len(windows_of(specs)))

    @property
    def num_hidden(self) -> int:
        """Hidden states that steps have room for."""
        return self.max_num_batched_tokens or self.bucket.num_tokens


def forward(
    model: ModelConfig, precision: Precision, shape: StepShape, mesh: Mesh
) -> jax.stages.Wrapped:
    """The jitted program, as the runner makes it.

    (params, vector, caches, tokens, hidden) -> (caches, tokens, hidden), which are donated.
    """
    step = engine_step.Model.of(model, precision, mesh)
    group = NamedSharding(mesh, PartitionSpec(sharding.DP))
    caches = jax.tree.map(lambda pages: pages.sharding, caches_of(model, precision, shape, mesh))
    return jax.jit(
        partial(engine_step.forward, step, shape.layout(step.cache_specs)),
        donate_argnums=(2, 3, 4),
        keep_unused=True,
        out_shardings=(caches, group, group),
    )


def caches_of(model: ModelConfig, precision: Precision, shape: StepShape, mesh: Mesh) -> Caches:
    """The caches that a step updates, as shapes with shardings."""
    _, specs = declared(model, precision)
    num_pages = [shape.num_pages] * len(windows_of(specs))
    return declare(specs, num_pages, shape.page_size, precision.cache, mesh)


def abstract_arguments(
    model: ModelConfig, precision: Precision, shape: StepShape, mesh: Mesh
) -> tuple[Any, ...]:
    """The arguments of `forward` as shapes with shardings."""
    whole = _Whole(mesh)
    caches = caches_of(model, precision, shape, mesh)
    tokens = whole(shape.max_num_seqs, shape.max_model_len + 1)
    hidden = whole(shape.num_hidden, model.hidden_size, dtype=precision.activations)
    vector = whole(shape.layout(declared(model, precision)[1]).size)
    return params_of(model, precision, mesh), vector, caches, tokens, hidden


def params_of(model: ModelConfig, precision: Precision, mesh: Mesh) -> tuple[Any, ...]:
    """The parameters as shapes with shardings."""
    return tuple(
        jax.ShapeDtypeStruct(
            spec.shape, spec.dtype, sharding=sharding.named_sharding(mesh, spec.axes, spec.shape)
        )
        for spec in declared(model, precision)[0].values()
    )


class _Whole:
    """Makes shapes of arrays that every device of a dp group has as a whole."""

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, PartitionSpec(sharding.DP))

    def __call__(self, *size: int, dtype: DTypeLike = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(size, dtype, sharding=self._sharding)


def argument_names(model: ModelConfig, precision: Precision, num_caches: int) -> list[str]:
    """Names of the compiled program's parameters, in order."""
    parts = PagedCache._fields if has_scales(precision.cache) else PagedCache._fields[:2]
    caches = [f"caches[{i}].{part}" for i in range(num_caches) for part in parts]
    return [*declared(model, precision)[0], "vector", *caches, "tokens", "hidden"]


def compile_step(
    model: ModelConfig,
    precision: Precision,
    shape: StepShape,
    mesh: Mesh,
    gpu: Gpu | None = None,
    options: dict[str, Any] | None = None,
) -> jax.stages.Compiled:
    """The step, compiled for the mesh.

    Args:
        model, precision, shape: What is compiled.
        mesh: Of devices that are there, or of a topology (rtpjax.plan.topology).
        gpu: What a topology is made of; None for devices that are there.
        options: Go to XLA, before those of the runner.
    """
    function = forward(model, precision, shape, mesh)
    arguments = abstract_arguments(model, precision, shape, mesh)
    with _tracing_for(gpu):
        return function.lower(*arguments).compile(engine_step.COMPILER_OPTIONS | (options or {}))


def choose(
    model: ModelConfig,
    precision: Precision,
    shape: StepShape,
    mesh: Mesh,
    *,
    num_outputs: int,
    wants: Wants,
) -> jax.stages.Lowered:
    """The program that chooses tokens, as the runner makes it.

    (head's params, hidden, outputs, tokens, state) -> (sampled, tokens); tokens are donated.
    """
    step, whole = engine_step.Model.of(model, precision, mesh), _Whole(mesh)
    slots = shape.max_num_seqs
    state = SlotState(
        tokens=None,  # type: ignore[arg-type]  # apart, as they are written
        bias_ids=whole(slots, MAX_BIASES),
        bias_values=whole(slots, MAX_BIASES, dtype=jnp.float32),
        bias_until=whole(slots, MAX_BIASES),
        bad_words=whole(slots, MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS),
        masks=whole(slots, -(-model.vocab_size // 32)),
    )
    function = jax.jit(
        partial(engine_step.choose, step, model.vocab_size, wants),
        donate_argnums=3,
        out_shardings=(NamedSharding(mesh, PartitionSpec()), whole(1).sharding),
    )
    return function.lower(
        step.head_of(params_of(model, precision, mesh)),
        whole(shape.num_hidden, model.hidden_size, dtype=precision.activations),
        whole(num_outputs, NUM_OUTPUT_FIELDS),
        whole(slots, shape.max_model_len + 1),
        state,
    )


def compile_choose(
    model: ModelConfig,
    precision: Precision,
    shape: StepShape,
    mesh: Mesh,
    gpu: Gpu | None = None,
    *,
    num_outputs: int,
    wants: Wants = EVERYTHING,
    options: dict[str, Any] | None = None,
) -> jax.stages.Compiled:
    """The program that chooses tokens, compiled for the mesh.

    Args:
        model, precision, shape, mesh, gpu: As of compile_step.
        num_outputs: Rows of logits.
        wants: Which variant.
        options: Go to XLA, before those of the runner.
    """
    with _tracing_for(gpu):
        lowered = choose(model, precision, shape, mesh, num_outputs=num_outputs, wants=wants)
    platform = mesh.devices.flat[0].platform
    return lowered.compile(engine_step.choose_options(platform, wants) | (options or {}))


def _tracing_for(gpu: Gpu | None) -> contextlib.AbstractContextManager[None]:
    """Kernels are chosen for that GPU; for the devices that are there if it is None."""
    return contextlib.nullcontext() if gpu is None else tracing_for(gpu.target)
