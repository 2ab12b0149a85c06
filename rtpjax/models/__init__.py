"""Model families; a module here that defines ARCHITECTURES is registered by being there.

config = ModelConfig.from_hf(json.loads(path.read_text()))
abstract = build(config, precision, abstract=True)      # shapes, formats and axes; no memory
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rtpjax.models.cache import Caches, PagedCache, Pages
from rtpjax.models.config import ModelConfig
from rtpjax.models.precision import Precision
from rtpjax.models.registry import CausalLM, architecture, architectures
from rtpjax.models.step import StepInputs
from rtpjax.models.weight_formats import MATRIX_INIT

__all__ = [
    "Caches",
    "CausalLM",
    "ModelConfig",
    "PagedCache",
    "Pages",
    "ParamSpec",
    "Precision",
    "StepInputs",
    "abstract_state",
    "architectures",
    "build",
    "init_random",
    "model_class",
    "param_name",
]


class ParamSpec(NamedTuple):
    """One parameter as declared: what a checkpoint must have, and how it is laid out.

    Attributes:
        shape: As in the checkpoint, `[out, in]` for a matrix.
        dtype: Format it is kept in, which the checkpoint need not have.
        axes: A logical axis for each dimension.
        init: How random values for it are drawn.
        offset: Added to a checkpoint's values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[str, ...]
    init: nnx.Initializer = MATRIX_INIT
    offset: float = 0.0


def model_class(config: ModelConfig) -> type[CausalLM]:
    """The class that runs config's architecture."""
    return architecture(config.architecture)


def build(config: ModelConfig, precision: Precision, *, abstract: bool, seed: int = 0) -> CausalLM:
    """A model, with random weights or with none.

    Args:
        config: Its shape and options.
        precision: Formats of its arrays.
        abstract: Whether parameters hold jax.ShapeDtypeStruct in place of arrays.
        seed: For random weights.
    """

    def construct(rngs: nnx.Rngs) -> CausalLM:
        return model_class(config)(config, precision, rngs=rngs)

    if not abstract:
        return construct(nnx.Rngs(params=seed))
    # Counting keys that make no numbers would be most of the time that a large model takes here.
    key = jax.random.key(seed)
    one_key: Any = SimpleNamespace(params=lambda: key)
    return nnx.eval_shape(lambda: construct(one_key))


def init_random(config: ModelConfig, precision: Precision, seed: int = 0) -> CausalLM:
    """A model with random weights, for tests and measurements."""
    return build(config, precision, abstract=False, seed=seed)


def param_name(path: tuple[Any, ...]) -> str:
    """A parameter's Hugging Face name, from its path in the nnx state."""
    return ".".join(map(str, path))


def abstract_state(config: ModelConfig, precision: Precision) -> Mapping[str, ParamSpec]:
    """All parameters by Hugging Face name, in the order of the leaves of `nnx.split(model)[1]`."""
    state = nnx.state(build(config, precision, abstract=True), nnx.Param)
    return {
        param_name(path): ParamSpec(
            leaf.get_value().shape,
            jnp.dtype(leaf.get_value().dtype),
            leaf.get_metadata("axes"),
            leaf.get_metadata("init"),
            leaf.get_metadata("offset"),
        )
        for path, leaf in nnx.to_flat_state(state)
    }
