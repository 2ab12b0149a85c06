"""The device mesh, and which mesh axis each logical axis is laid out on.

Tensor parallelism only: query and key/value heads, MLP features and vocabulary are split over "tp";
what flows between layers is replicated. A parameter carries its logical axes
(rtpjax.models.layers.param); the table here is the only place that knows where they go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rtpjax.errors import ConfigError
from rtpjax.models.config import ModelConfig

TP = "tp"

AXIS_RULES: dict[str, str | None] = {
    "vocab": TP,
    "heads": TP,
    "kv_heads": TP,
    "mlp": TP,
    "embed": None,
    "head_dim": None,
    "pages": None,
    "page_offset": None,
}

CACHE_AXES = ("pages", "page_offset", "kv_heads", "head_dim")


def make_mesh(tp_size: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, "tp".

    Args:
        tp_size: Devices that a layer is split over.
        devices: To take the first tp_size of; all that JAX sees if None.

    Raises:
        ConfigError: There are fewer devices.
    """
    devices = jax.devices() if devices is None else devices
    if not 1 <= tp_size <= len(devices):
        raise ConfigError(
            f"tp_size is {tp_size}, but {len(devices)} {devices[0].platform} device(s) are there. "
            f"Set TP_SIZE to at most {len(devices)}."
        )
    return Mesh(np.asarray(devices[:tp_size]), (TP,))


def check_model_fits(config: ModelConfig, tp_size: int) -> None:
    """Refuses a split through the middle of a head.

    Raises:
        ConfigError: tp_size does not divide the model's heads.
    """
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % tp_size or kv_heads % tp_size:
        fitting = [n for n in range(1, kv_heads + 1) if heads % n == kv_heads % n == 0]
        raise ConfigError(
            f"tp_size {tp_size} does not divide the model's {heads} attention heads and {kv_heads} "
            f"key/value heads. Set TP_SIZE to one of {fitting}."
        )


def named_sharding(mesh: Mesh, axes: Sequence[str], shape: Sequence[int]) -> NamedSharding:
    """Where an array with these logical axes lies.

    A dimension that the mesh does not divide (a vocabulary of 32,001) is replicated.
    """
    rules = [AXIS_RULES[axis] for axis in axes]
    spec = [
        name if name is not None and size % mesh.shape[name] == 0 else None
        for name, size in zip(rules, shape, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*spec))


def upload(value: np.ndarray, where: NamedSharding) -> jax.Array:
    """A host's array on the devices; every process of the mesh calls it with the same value."""
    if where.is_fully_addressable:
        return jax.device_put(value, where)
    # device_put would ask all processes whether their values are equal, each time.
    return jax.make_array_from_callback(value.shape, where, value.__getitem__)
