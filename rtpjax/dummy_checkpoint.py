"""Random weights of any model whose config.json is known (LOAD_FORMAT=dummy), made on the devices.

    llama-3.1-8b (a preset)  ──┐
    folder with config.json  ──┼──►  find_config ──► path of a config.json ──► DummyCheckpoint
    a config.json file       ──┘

From there on it is a checkpoint like others, and that path stands for it: `open_checkpoint` opens
it, `load_tokenizer` takes the tokenizer beside it or makes one of bytes. Values are drawn as the
model declares its parameters (`init`): products of weights keep activations finite. They depend on
the seed and the tensor's name alone, so a model is the same on every mesh.
"""

from __future__ import annotations

import functools
import json
import logging
import zlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from rtpjax.checkpoint import TensorInfo, read_config
from rtpjax.errors import CheckpointError
from rtpjax.models import ModelConfig, ParamSpec, Precision, abstract_state
from rtpjax.plan import presets

logger = logging.getLogger(__name__)

# Values of LOAD_FORMAT, as vLLM calls them.
AUTO, DUMMY = "auto", "dummy"
DEFAULT_PRESET = "smollm2-135m"  # the architecture of the embedded model


def find_config(named: str | None, from_hub: Callable[[str], Path] | None = None) -> Path:
    """The config.json of what CHECKPOINT_PATH names; weights beside it are not looked at.

    Args:
        named: A folder or file, the name of a preset, or a hub id; the embedded model's
            architecture if None.
        from_hub: Fetches a hub id's config.json and tokenizer into a folder.

    Raises:
        CheckpointError: It is none of these.
    """
    named = named or DEFAULT_PRESET
    path = Path(named).expanduser()
    if path.is_dir():
        path /= "config.json"
        if path.is_file():
            return path
        raise CheckpointError(
            f"{path.parent}: there is no config.json, which LOAD_FORMAT=dummy makes a model of."
        )
    if path.is_file():
        if path.suffix == ".json":
            return path
        raise CheckpointError(
            f"{path}: LOAD_FORMAT=dummy makes a model of a config.json (a file *.json, or a folder "
            "that has it), and this is another file."
        )
    if named.lower() in presets.names():
        return presets.path(named)
    if from_hub is not None and is_hub_id(named):
        return from_hub(named) / "config.json"
    raise CheckpointError(
        f"{named}: no such folder, config.json or preset. Presets: {', '.join(presets.names())}."
    )


def is_hub_id(named: str) -> bool:
    """Whether a name that is no path can be one of the hub's."""
    return named.count("/") == 1 and not named.startswith((".", "/", "~"))


def is_config_file(path: Path) -> bool:
    """Whether a path that find_config may have made stands for random weights."""
    return path.suffix == ".json" and path.is_file()


def name_of(path: Path) -> str:
    """What to call a model of random weights, so that nobody takes it for the real one."""
    named = path.resolve()
    return f"{named.parent.name if named.stem == 'config' else named.stem}-dummy"


class DummyCheckpoint:
    """A checkpoint that draws its tensors; see rtpjax.checkpoint.Checkpoint.

    It draws numbers in whatever format is asked for, so quantized weights are not made of the plain
    ones: they are another model of the same shape.

    Args:
        config: The dict of a config.json; of a quantized model too.
        path: What stands for it in messages.
        seed: Another one makes another model.
        specs: What the model declares; from config, in bfloat16, if None.
    """

    format = DUMMY
    doubled: Mapping[str, tuple[str, ...]] = {}  # noqa: RUF012

    def __init__(
        self,
        config: dict[str, Any],
        path: Path = Path("config.json"),
        *,
        seed: int = 0,
        specs: Mapping[str, ParamSpec] | None = None,
    ):
        self.config = config
        self.path = path
        self.files = (path,)
        self._seed = seed
        self._given_specs = specs

    @staticmethod
    def open(path: Path) -> DummyCheckpoint:
        """The model of a config.json.

        Raises:
            CheckpointError: The file cannot be read.
        """
        logger.warning("The weights are random (LOAD_FORMAT=dummy), made for %s", path)
        return DummyCheckpoint(read_config(path), path)

    def in_formats(self, specs: Mapping[str, ParamSpec]) -> DummyCheckpoint:
        """The same model in the formats of specs, from rtpjax.models.abstract_state."""
        return DummyCheckpoint(self.config, self.path, seed=self._seed, specs=specs)

    @cached_property
    def _specs(self) -> Mapping[str, ParamSpec]:
        if self._given_specs is not None:
            return self._given_specs
        return abstract_state(ModelConfig.from_hf(self.config), Precision.of("BF16", "gpu"))

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """See Checkpoint."""
        return {name: TensorInfo(name, s.shape, s.dtype) for name, s in self._specs.items()}

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See Checkpoint."""
        spec = self._specs[name]
        return np.asarray(_maker(spec.init, spec.shape, spec.dtype, None)(self._seed_of(name)))[
            index or ()
        ]

    def restore(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """See ShardedCheckpoint: each device draws its own shards."""
        return {
            name: _maker(self._specs[name].init, target.shape, target.dtype, target.sharding)(
                self._seed_of(name)
            )
            for name, target in targets.items()
        }

    def _seed_of(self, name: str) -> np.uint32:
        return np.uint32(zlib.crc32(f"{self._seed} {name}".encode()))


@functools.lru_cache(maxsize=256)
def _maker(
    init: Any, shape: tuple[int, ...], dtype: Any, sharding: Sharding | None
) -> Callable[[np.uint32], jax.Array]:
    """A program that draws a tensor; tensors of one kind share it."""

    def make(seed: jax.Array) -> jax.Array:
        return init(jax.random.key(seed), shape, dtype)

    return jax.jit(make, out_shardings=sharding)
