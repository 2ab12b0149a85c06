"""The device mesh, and which mesh axes each logical axis is laid out on.

DP_SIZE groups of TP_SIZE devices. A group serves requests of its own; within it each layer is
split. What is split in how many ways differs: 4 kv heads cannot lie on 8 devices, so pairs of them
keep the same one. So the devices of a group are cut into several mesh axes, most of size 1, and
each thing is split over the axes that it can be split over, and copied over the others:

    8 devices, 16 heads, 4 kv heads        mesh axes  kv 4, q 2
    device     0    1    2    3    4    5    6    7
    heads     0-1  2-3  4-5  6-7  8-9 10-11 12-13 14-15      over (kv, q)
    kv heads   0    0    1    1    2    2    3    3          over (kv)

A parameter carries its logical axes (rtpjax.models.layers.param); the table here is the only place
that knows where they go.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from pallas_kernels.sharded import MeshAxes
from rtpjax.errors import ConfigError
from rtpjax.models.config import ModelConfig

logger = logging.getLogger(__name__)

DP = "dp"
_ATTENTION = ("kv_ep", "kv", "ep", "q")
TP = (*_ATTENTION, "mlp")
AXES = (DP, *TP)

AXIS_RULES: dict[str, tuple[str, ...]] = {
    "vocab": TP,
    "lookup": (),  # rows of a table that is only looked up: split, it would cost a sum in each step
    "heads": _ATTENTION,
    "kv_heads": ("kv_ep", "kv"),
    "mlp": TP,
    "experts": ("kv_ep", "ep"),
    "expert_mlp": ("kv", "q", "mlp"),
    "router": (),
    "embed": (),
    "head_dim": (),
    "pages": (DP,),
    "page_offset": (),
}

CACHE_AXES = ("pages", "page_offset", "kv_heads", "head_dim")
CACHE_SCALE_AXES = ("pages", "kv_heads")

# So many devices may compute the same heads, where heads cannot be split further. 9 heads on 2
# devices are then served, with the MLP split; on 8 devices most of them would be of no use.
_MOST_COPIES = 2


@dataclasses.dataclass(frozen=True)
class Split:
    """In how many ways a model is split over a group of devices.

    Attributes:
        tp_size: Devices of a group.
        heads: Ways for query heads; divides tp_size.
        kv_heads: Ways for key/value heads; divides heads.
        ep_size: Ways for experts; divides heads.
    """

    tp_size: int
    heads: int
    kv_heads: int
    ep_size: int = 1

    @staticmethod
    def of(config: ModelConfig, tp_size: int, ep_size: int = 1) -> Split:
        """The finest split: kv heads are copied where there are more devices than kv heads.

        A group of query heads stays with its kv head, so one of the two numbers must divide the
        other: devices of a kv head, or kv heads of a device.
        """
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads

        def fits(n: int) -> bool:
            return tp_size % n == heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)

        finest = max(n for n in range(1, tp_size + 1) if fits(n))
        return Split(tp_size, finest, math.gcd(kv_heads, finest), ep_size)

    @property
    def num_copies(self) -> int:
        """Devices that compute the same heads."""
        return self.tp_size // self.heads

    def axis_sizes(self) -> dict[str, int]:
        """Sizes of the mesh axes of TP."""
        shared = math.gcd(self.kv_heads, self.ep_size)
        kv, ep = self.kv_heads // shared, self.ep_size // shared
        return dict(
            zip(
                TP, (shared, kv, ep, self.heads // (shared * kv * ep), self.num_copies), strict=True
            )
        )


def make_mesh(
    tp_size: int,
    *,
    dp_size: int = 1,
    ep_size: int = 1,
    model: ModelConfig | None = None,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh of the axes AXES.

    Args:
        tp_size: Devices that a layer is split over.
        dp_size: Groups of so many devices.
        ep_size: Ways that experts are split in; divides tp_size.
        model: What is split, which check_model_fits passed; heads that tp_size divides if None.
        devices: To take the first ones of; all that JAX sees if None.

    Raises:
        ConfigError: There are fewer devices.
    """
    devices = jax.devices() if devices is None else devices
    wanted = tp_size * dp_size
    if min(tp_size, dp_size) < 1 or wanted > len(devices):
        each = "" if dp_size == 1 else f" and dp_size is {dp_size}, {wanted} devices together"
        raise ConfigError(
            f"tp_size is {tp_size}{each}, but {len(devices)} {devices[0].platform} device(s) are "
            f"there. Set TP_SIZE times DP_SIZE to at most {len(devices)}"
            f"{_more_devices(devices[0].platform, wanted)}."
        )
    shape = mesh_shape(tp_size, dp_size=dp_size, ep_size=ep_size, model=model)
    return Mesh(np.asarray(devices[:wanted]).reshape(tuple(shape.values())), AXES)


def mesh_shape(
    tp_size: int, *, dp_size: int = 1, ep_size: int = 1, model: ModelConfig | None = None
) -> dict[str, int]:
    """Sizes of the mesh axes by name; see make_mesh."""
    split = Split(tp_size, tp_size, tp_size, ep_size)
    if model is not None:
        split = Split.of(model, tp_size, ep_size)
    return {DP: dp_size, **split.axis_sizes()}


def _more_devices(platform: str, wanted: int) -> str:
    hint = f", or JAX_NUM_CPU_DEVICES to {wanted} to try it out without GPUs"
    return hint if platform == "cpu" else ""


def check_model_fits(config: ModelConfig, tp_size: int, ep_size: int = 1) -> None:
    """Refuses a split through the middle of a head, of an MLP feature or of an expert.

    Raises:
        ConfigError: The model cannot be split so; it names the sizes that can be.
    """
    problems = list(_problems(config, tp_size, ep_size))
    if problems:
        most = 2 * config.num_attention_heads
        fitting = [n for n in range(1, most + 1) if not any(_problems(config, n, ep_size))]
        advice = f"Set TP_SIZE to one of {fitting}" if fitting else "Set EP_SIZE to 1"
        raise ConfigError(
            f"tp_size {tp_size}{f' with ep_size {ep_size}' if ep_size > 1 else ''} cannot split "
            f"this model: {'; '.join(problems)}. {advice}."
        )
    split = Split.of(config, tp_size, ep_size)
    if split.num_copies > 1:
        logger.warning(
            "%d attention heads and %d key/value heads cannot be split over %d devices: %d devices "
            "compute the same heads, and keep the same cache; the rest of the model is split.",
            config.num_attention_heads, config.num_key_value_heads, tp_size, split.num_copies,
        )  # fmt: skip
    if config.vocab_size % tp_size:
        logger.warning(
            "tp_size %d does not divide the vocabulary of %d: every device keeps all of it.",
            tp_size, config.vocab_size,
        )  # fmt: skip


def _problems(config: ModelConfig, tp_size: int, ep_size: int) -> Iterator[str]:
    split = Split.of(config, tp_size, ep_size)
    if split.num_copies > _MOST_COPIES:
        yield (
            f"its {config.num_attention_heads} attention heads and {config.num_key_value_heads} "
            f"key/value heads can be split over {split.heads} of these devices only"
        )
    moe = config.moe
    if (moe is None or not all(moe.layers)) and config.intermediate_size % tp_size:
        yield f"its {config.intermediate_size} MLP features are not a multiple"
    if moe is None:
        if ep_size > 1:
            yield "it has no experts that EP_SIZE could split"
        return
    if split.heads % math.lcm(split.kv_heads, ep_size):
        yield (
            f"{ep_size} ways for experts do not divide the {split.heads} ways for attention heads "
            f"beside the {split.kv_heads} for key/value heads"
        )
    if moe.num_experts % ep_size:
        yield f"its {moe.num_experts} experts are not a multiple of EP_SIZE"
    if moe.intermediate_size * ep_size % tp_size:
        yield f"the {moe.intermediate_size} features of its experts are not a multiple"
    if moe.shared_size % tp_size:
        yield f"the {moe.shared_size} features of its shared expert are not a multiple"


def ways(mesh: Mesh | AbstractMesh, axis: str) -> int:
    """In how many ways a logical axis is split, where its size allows."""
    return math.prod(mesh.shape[name] for name in AXIS_RULES[axis])


def named_sharding(
    mesh: Mesh | AbstractMesh, axes: Sequence[str], shape: Sequence[int]
) -> NamedSharding:
    """Where an array with these logical axes lies.

    A dimension that the mesh does not divide (a vocabulary of 32,001) is on every device.
    """
    spec = [
        tuple(name for name in AXIS_RULES[axis] if mesh.shape[name] > 1)
        if size % ways(mesh, axis) == 0
        else ()
        for axis, size in zip(axes, shape, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*(_entry(names) for names in spec)))  # pyright: ignore[reportArgumentType]


def _entry(names: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return names if len(names) > 1 else next(iter(names), None)


def mesh_axes(mesh: Mesh) -> MeshAxes:
    """What kernels need to know of the mesh."""
    return MeshAxes(
        mesh,
        **{
            name: AXIS_RULES[name]
            for name in ("heads", "kv_heads", "mlp", "vocab", "experts", "expert_mlp")
        },
    )


def upload(value: np.ndarray, where: NamedSharding) -> jax.Array:
    """A host's array on the devices; every process of the mesh calls it with the same value."""
    # device_put asks all processes whether their values are equal, each time, and takes twice the
    # host's time on one.
    return jax.make_array_from_callback(value.shape, where, value.__getitem__, dtype=value.dtype)
