"""The two programs of a step, as pure functions; the runner compiles and calls them.

    forward   packed vector -> tokens (pending ones are read where the step before wrote them)
              -> model (writes the cache, attends over it) -> hidden states of all tokens
    choose    hidden states of the outputs -> logits -> sampled tokens, each written to its slot for
              the next step to read

They are two because a grammar's mask depends on the token before: the host learns that token and
makes the mask while the device is busy with `forward`. And because of the outputs, which have
little to do with the shape of a step: a prompt of any length has one as a rule, and all of its
tokens are outputs where they are to be scored. All steps leave their hidden states in one array, as
long as the longest step, so that `choose` is compiled by the number of outputs alone. They come
after the model's last norm, which XLA computes together with the last layer's sum.

Both donate what they update.

Each dp group of the mesh has rows, pages and slots of its own. All lie one after another along the
first dimension (that of the packed vector too), split over dp; inside of `shard_map` over dp a
group sees its own part and nothing else, and its numbers of pages and slots begin at 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rtpjax.engine.batch import Layout, output_inputs, unpack
from rtpjax.engine.limits import MAX_LOGPROBS
from rtpjax.engine.sampling import Sampled, SlotState, sample
from rtpjax.engine.wants import Wants
from rtpjax.models import Caches, ModelConfig, Pages, build
from rtpjax.models.precision import Precision
from rtpjax.sharding import DP, mesh_axes

T = TypeVar("T")

# XLA counts the cache anew for each layer that updates it, finds that GPUs do not have the memory,
# and computes things twice to save some.
COMPILER_OPTIONS: dict[str, str | bool] = {"xla_disable_hlo_passes": "rematerialization"}

# What XLA puts into CUDA graphs, of which "" is nothing: its own list of jaxlib 0.10 to 0.12, and
# loops. By default the host runs a loop, or a conditional with one inside, launch by launch, and
# waits for the device to learn which comes next.
COMMAND_BUFFERS = "xla_gpu_enable_command_buffer"
_CAPTURED = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"


def choose_options(platform: str, wants: Wants) -> dict[str, str | bool]:
    """XLA's options for a variant of `choose`; a CPU knows none of these.

    Only conditionals need loops in graphs: without, the host of an H100 waits for the whole step
    (15 ms at 64 rows; 1 with them). Loops that run a known number of times it starts without
    waiting, and inside of a graph they take 1.2 to 1.5 times as long (docs/lab).
    """
    has_conditionals = wants.edits or wants.logprobs
    return {COMMAND_BUFFERS: _CAPTURED} if has_conditionals and platform != "cpu" else {}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model without its parameters, which each call brings as a flat tuple.

    jax.jit takes a flat tuple of hundreds of arrays several times faster than a module or a tree.

    Attributes:
        graph, tree: Put parameters together to a module.
        declared: Parameters as shapes.
        head: Which parameters logits are made with, by index.
        cache_specs: What each layer caches.
        mesh: Devices that it is split over.
    """

    graph: Any
    tree: Any
    declared: tuple[Any, ...]
    head: tuple[int, ...]
    cache_specs: tuple[Pages, ...]
    mesh: Mesh

    @staticmethod
    def of(config: ModelConfig, precision: Precision, mesh: Mesh) -> Model:
        """The model of a configuration; makes no arrays."""
        model = build(config, precision, abstract=True)
        graph, state = nnx.split(model)
        declared, tree = jax.tree.flatten(state)
        hidden = jax.ShapeDtypeStruct((1, config.hidden_size), precision.activations)

        def logits(params: list[Any], hidden: jax.Array) -> jax.Array:
            return nnx.merge(graph, jax.tree.unflatten(tree, params)).logits(hidden)

        traced = jax.make_jaxpr(logits)(declared, hidden).jaxpr
        read = {id(x) for equation in traced.eqns for x in equation.invars}
        head = tuple(i for i, x in enumerate(traced.invars[:-1]) if id(x) in read)
        return Model(graph, tree, tuple(declared), head, model.cache_specs(), mesh)

    def with_params(self, params: Sequence[Any]) -> Any:
        """The module with these parameters, in the order of rtpjax.models.abstract_state."""
        return nnx.merge(self.graph, jax.tree.unflatten(self.tree, params))

    def head_of(self, params: Sequence[T]) -> tuple[T, ...]:
        """Of all parameters, or what there is one of for each, those that logits are made with."""
        return tuple(params[i] for i in self.head)

    def with_head(self, params: Sequence[Any]) -> Any:
        """The module with what head_of picked; nothing but its logits can be computed."""
        every = list(self.declared)
        for i, param in zip(self.head, params, strict=True):
            every[i] = param
        return self.with_params(every)


def forward(
    model: Model,
    layout: Layout,
    params: tuple[jax.Array, ...],
    vector: jax.Array,
    caches: Caches,
    tokens: jax.Array,
    hidden: jax.Array,
) -> tuple[Caches, jax.Array, jax.Array]:
    """Everything up to the hidden states. Caches, tokens and hidden states are donated.

    Args:
        model: Which model.
        layout: Of a dp group's part of the vector.
        params: Its parameters.
        vector: int32 `[dp * layout.size]`, the packed step.
        caches: Arrays `[dp * n * P, ...]` for n layers.
        tokens: int32 `[dp * slots, max_model_len + 1]`, see SlotState.
        hidden: `[dp * most tokens of a step, D]`; its first T entries are replaced.

    Returns:
        What was donated, updated.
    """
    group = partial(_forward, model, layout)
    return _in_each_group(model.mesh, group, (P(), P(DP), P(DP), P(DP), P(DP)))(
        params, vector, caches, tokens, hidden
    )


def _in_each_group(
    mesh: Mesh, function: Callable[..., Any], in_specs: tuple[P, ...]
) -> Callable[..., Any]:
    """The function of a dp group, for all groups; how a group splits it is left to the compiler."""
    return jax.shard_map(
        function,
        mesh=mesh,
        axis_names={DP},
        in_specs=in_specs,
        out_specs=P(DP),
        check_vma=False,  # the kernels' shard_maps inside do without it
    )


def _forward(
    model: Model,
    layout: Layout,
    params: tuple[jax.Array, ...],
    vector: jax.Array,
    caches: Caches,
    tokens: jax.Array,
    hidden: jax.Array,
) -> tuple[Caches, jax.Array, jax.Array]:
    module = model.with_params(params)
    token_ids, token_slots, inputs = unpack(vector, layout, tokens)
    # Read once, before rows are written: XLA would read pending tokens again after, and copy all
    # for that.
    token_ids, tokens = lax.optimization_barrier((token_ids, tokens))
    tokens = tokens.at[token_slots, inputs.positions].set(token_ids, mode="drop")
    inputs = dataclasses.replace(inputs, mesh=mesh_axes(model.mesh))
    computed, caches = module(token_ids, inputs, caches)
    return caches, tokens, lax.dynamic_update_slice(hidden, computed, (0, 0))


def choose(
    model: Model,
    num_tokens: int,
    wants: Wants,
    params: tuple[jax.Array, ...],
    hidden: jax.Array,
    outputs: jax.Array,
    tokens: jax.Array,
    state: SlotState,
) -> tuple[jax.Array, jax.Array]:
    """A token for each output. The tokens are donated.

    What is only read is not handed back: each result of a program costs the host time for each
    device.

    Args:
        model: Which model.
        num_tokens: Tokens that the tokenizer knows; ids beyond are never sampled.
        wants: One of VARIANTS, which covers what the outputs want.
        params: What Model.head_of picks.
        hidden: `[dp * most tokens of a step, D]`, as forward left it.
        outputs: int32 `[dp * S, F]`, see batch.output_inputs.
        tokens: int32 `[dp * slots, max_model_len + 1]`, all before the sampled ones.
        state: The other per-request state; its own tokens are not there.

    Returns:
        The packed Sampled int32 `[dp * S, 2 + 2 * MAX_LOGPROBS]`, see unpack_sampled, and the
        tokens with the sampled ones.
    """
    score = _in_each_group(model.mesh, partial(_logits, model), (P(), P(DP), P(DP)))
    logits = score(params, hidden, outputs)
    # Sampling sees whole rows.
    logits = lax.with_sharding_constraint(logits, NamedSharding(model.mesh, P(DP)))
    group = partial(_choose, num_tokens, wants)
    return _in_each_group(model.mesh, group, (P(DP), P(DP), P(DP), P(DP)))(
        logits, outputs, tokens, state
    )


def _logits(
    model: Model, params: tuple[jax.Array, ...], hidden: jax.Array, outputs: jax.Array
) -> jax.Array:
    at = output_inputs(outputs).at
    return model.with_head(params).logits(hidden[at], mesh_axes(model.mesh))


def _choose(
    num_tokens: int,
    wants: Wants,
    logits: jax.Array,
    outputs: jax.Array,
    tokens: jax.Array,
    state: SlotState,
) -> tuple[jax.Array, jax.Array]:
    rows = output_inputs(outputs)
    state = state._replace(tokens=tokens)
    sampled = sample(logits, outputs, state, num_tokens, wants=wants)
    tokens = tokens.at[rows.sample_slots, rows.context_lens].set(sampled.token_ids, mode="drop")
    return _pack_sampled(sampled), tokens


def _pack_sampled(sampled: Sampled) -> jax.Array:
    """One array: a download has a fixed cost, which is larger than that of its bytes."""
    scores, top_scores = (
        lax.bitcast_convert_type(x, jnp.int32) for x in (sampled.logprobs, sampled.top_logprobs)
    )
    columns = sampled.token_ids[:, None], scores[:, None], sampled.top_ids, top_scores
    return jnp.concatenate(columns, axis=1)


def unpack_sampled(packed: np.ndarray) -> Sampled:
    """What choose returned, as views of the array on the host."""
    floats, end = packed.view(np.float32), 2 + MAX_LOGPROBS
    columns = packed[:, 0], floats[:, 1], packed[:, 2:end], floats[:, end:]
    return Sampled(*columns)  # type: ignore[arg-type]
