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
import logging
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from rtpjax.checkpoint import TensorInfo, read_config
from rtpjax.errors import CheckpointError
from rtpjax.models import ParamSpec
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

    It draws numbers in whatever formats are asked for (in_formats), so quantized weights are not
    made of the plain ones: they are another model of the same shape.

    Args:
        config: The dict of a config.json; of a quantized model too.
        path: What stands for it in messages.
        specs: What the model declares, from rtpjax.models.abstract_state; nothing can be read
            without.
        seed: Another one makes another model.
    """

    def __init__(
        self,
        config: dict[str, Any],
        path: Path = Path("config.json"),
        *,
        specs: Mapping[str, ParamSpec] | None = None,
        seed: int = 0,
    ):
        self.format = DUMMY
        self.config = config
        self.path = path
        self.files = (path,)
        self.doubled: Mapping[str, tuple[str, ...]] = {}
        self._specs = specs or {}
        self._seed = seed
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, spec.shape, spec.dtype) for name, spec in self._specs.items()
        }

    @staticmethod
    def open(path: Path) -> DummyCheckpoint:
        """The model of a config.json.

        Raises:
            CheckpointError: The file cannot be read.
        """
        logger.warning("The weights are random (LOAD_FORMAT=dummy), made for %s", path)
        return DummyCheckpoint(read_config(path), path)

    def in_formats(self, specs: Mapping[str, ParamSpec]) -> DummyCheckpoint:
        """The same model with the tensors of specs."""
        return DummyCheckpoint(self.config, self.path, specs=specs, seed=self._seed)

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See Checkpoint."""
        spec = self._specs[name]
        whole = _maker(spec.init, spec.shape, spec.dtype, None)(self._seed_of(name))
        return (np.asarray(whole) - spec.offset if spec.offset else np.asarray(whole))[index or ()]

    def restore(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """See ShardedCheckpoint: each device draws its own shards."""
        restored = {}
        for name, target in targets.items():
            spec = self._specs[name]
            draw = _maker(spec.init, target.shape, target.dtype, target.sharding)
            values = draw(self._seed_of(name))
            restored[name] = values - spec.offset if spec.offset else values
        return restored

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
