"""Converts a checkpoint: reads any format, checks it, and writes a complete folder or none."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from checkpoints_conv.manifest import Manifest, sha256_of, write_manifest
from checkpoints_conv.readers import open_checkpoint
from checkpoints_conv.readers.gguf import GgufCheckpoint
from checkpoints_conv.writers import WRITERS, Source, num_bytes
from rtpjax.checkpoint import Checkpoint, TensorInfo, as_stored, check_tensors
from rtpjax.dummy_checkpoint import is_config_file
from rtpjax.errors import CheckpointError, ConfigError
from rtpjax.models import ModelConfig, Precision, abstract_state
from rtpjax.models.encodings.compressed_tensors import config_of, stored_arrays, stored_parts
from rtpjax.models.quantization import UNQUANTIZED
from rtpjax.models.weight_formats import SCALE, WEIGHT
from rtpjax.quantized_checkpoint import QuantizedCheckpoint, wanted_quantization
from rtpjax.sharding import check_model_fits, make_mesh, named_sharding
from rtpjax.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

_REMOVE_TRIES = 20
_REMOVE_PAUSE_S = 0.2

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}

# Declares the same tensors as any other; formats are those of the source.
_PRECISION = Precision.of("FP32", "cpu")

# What a folder may have besides weights and config.json that a server uses.
_TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_TEMPLATES_FOLDER = "additional_chat_templates"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What to write.

    Attributes:
        format: "safetensors" or "orbax".
        dtype: "float32", "bfloat16", "float16", or "auto": as stored, and quantized weights as
            bfloat16.
        quantize: "int8", "int4" or "fp8": what matrices are quantized to; the rest has dtype.
        group: Inputs that share a scale, for int4.
        tp: For orbax: devices whose shards are stored as pieces of their own, so that each of so
            many devices reads its part and nothing else. Any number can restore it.
        force: Whether an existing destination is replaced.
        has_progress: Whether a bar is drawn on stderr.
    """

    format: str = "safetensors"
    dtype: str = "auto"
    quantize: str | None = None
    group: int | None = None
    tp: int = 1
    force: bool = False
    has_progress: bool = True


def convert(source: Path, destination: Path, options: Conversion) -> None:
    """Converts source into the folder destination, which appears when it is complete.

    Args:
        source: Anything that open_checkpoint reads.
        destination: A folder that does not exist yet, unless options.force.
        options: Format, dtype, and whether to replace.

    Raises:
        ConfigError: options.tp devices cannot share the model.
        CheckpointError: The source cannot be read or does not fit its model, the destination is
            there already, or writing failed (nothing is left behind then).
    """
    if destination.exists() and not options.force:
        raise CheckpointError(f"{destination}: already there. Give --force to replace it.")
    if is_config_file(source):
        raise CheckpointError(f"{source}: a config.json has no weights; name its folder.")
    checkpoint = open_checkpoint(source)
    config = ModelConfig.from_hf(checkpoint.config)
    if options.tp > 1:
        check_model_fits(config, options.tp)
    if options.quantize is None:
        weights = _plain(checkpoint, config, is_stacked=options.format != "safetensors")
    else:
        weights = _quantized(checkpoint, config, options)
    try:
        with complete_folder(destination, force=options.force) as folder:
            _write(checkpoint, weights, folder, options)
    except OSError as error:
        raise CheckpointError(
            f"{destination}: writing failed, nothing stands there: {error}"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Weights:
    """What is written.

    Attributes:
        tensors: In the order they are written; plain ones as they are stored.
        read: One of them.
        config: The config.json.
        model: What is split over devices.
        axes: Logical axes of the tensors that can be split.
        is_rounded: Whether plain ones were quantized in the source: their format says little.
    """

    tensors: Sequence[TensorInfo]
    read: Callable[[str], np.ndarray]
    config: dict[str, Any]
    model: ModelConfig
    axes: Mapping[str, tuple[str, ...]]
    is_rounded: bool = False


def _plain(checkpoint: Checkpoint, config: ModelConfig, *, is_stacked: bool) -> _Weights:
    """Every parameter as it is, and quantized ones as plain matrices.

    Args:
        checkpoint: What is converted.
        config: Its model.
        is_stacked: Whether experts are written as the model has them, or else as they are stored.
    """
    plain = dataclasses.replace(config, quantization=UNQUANTIZED)
    specs = abstract_state(plain, _PRECISION)
    source, names = checkpoint, list(specs)
    if config.quantization.is_plain:
        check_tensors(checkpoint, specs)
        if not is_stacked:
            source, names = as_stored(checkpoint, names)
    else:
        source = QuantizedCheckpoint(checkpoint, config, config.quantization, UNQUANTIZED, specs)
    rest = {k: v for k, v in checkpoint.config.items() if k != "quantization_config"}
    is_rounded = isinstance(checkpoint, GgufCheckpoint) and checkpoint.is_quantized
    return _Weights(
        [source.tensors[name] for name in names],
        source.read,
        rest,
        plain,
        {name: spec.axes for name, spec in specs.items()},
        is_rounded or not config.quantization.is_plain,
    )


def _quantized(checkpoint: Checkpoint, config: ModelConfig, options: Conversion) -> _Weights:
    """Matrices as compressed-tensors stores them, the rest as it is."""
    if not config.quantization.is_plain:
        raise CheckpointError(
            f"{checkpoint.path}: is quantized already, as {config.quantization.layers}. Convert "
            "the checkpoint that it was made from."
        )
    try:
        wanted = wanted_quantization(config, options.quantize, options.group)
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    specs = abstract_state(dataclasses.replace(config, quantization=wanted), _PRECISION)
    view = QuantizedCheckpoint(checkpoint, config, wanted, wanted, specs)
    axes = {name: spec.axes for name, spec in specs.items()}
    tensors, modules = [], {}
    for name in specs:
        module = name.rpartition(".")[0]
        format = wanted.of(module)
        if f"{module}.{SCALE}" not in specs or name.endswith(".bias"):
            tensors.append(view.tensors[name])
        elif name.endswith(f".{WEIGHT}"):
            shape = checkpoint.tensors[name].shape
            parts = {f"{module}.{part}": info for part, info in stored_parts(format, shape).items()}
            tensors += [TensorInfo(part, *info) for part, info in parts.items()]
            modules |= dict.fromkeys(parts, module)
            matrices = [part for part, info in parts.items() if len(info[0]) == 2]
            axes |= dict.fromkeys(matrices, specs[name].axes)

    @functools.lru_cache(maxsize=1)
    def arrays_of(module: str) -> dict[str, np.ndarray]:
        format = wanted.of(module)
        return stored_arrays(format, {part: view.read(f"{module}.{part}") for part in format.parts})

    def read(name: str) -> np.ndarray:
        if name not in modules:
            return view.read(name)
        return arrays_of(modules[name])[name.rpartition(".")[2]]

    saved_config = {**checkpoint.config, "quantization_config": config_of(wanted)}
    return _Weights(tensors, read, saved_config, config, axes)


@contextlib.contextmanager
def complete_folder(destination: Path, *, force: bool) -> Iterator[Path]:
    """A new folder beside destination that takes its name at the end, if nothing went wrong.

    Until the rename there is nothing at destination, also when the process is killed; what it
    leaves then has a name that begins with a dot, and no config.json before its weights are
    complete.
    """
    destination = destination.absolute()
    destination.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{destination.name}.partial-"
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=destination.parent))
    try:
        folder.chmod(0o755)
        yield folder
        _sync(folder)
        if force and destination.exists():
            _replace(folder, destination)
        else:
            folder.rename(destination)
        _sync_one(destination.parent)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    # After a failure orbax's threads may still be making files in it for a moment.
    for _ in range(_REMOVE_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_REMOVE_PAUSE_S)
    logger.warning("%s could not be removed; delete it", folder)


def _replace(folder: Path, destination: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f".{destination.name}.old-", dir=destination.parent))
    destination.rename(old / destination.name)
    folder.rename(destination)
    shutil.rmtree(old)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(checkpoint: Checkpoint, weights: _Weights, folder: Path, options: Conversion) -> None:
    """Weights, tokenizer, config.json, manifest.json, in this order."""
    tensors = [_target(info, weights, options.dtype) for info in weights.tensors]
    shardings = _shardings(weights, options.tp)
    dtypes = {info.name: info.dtype for info in tensors}

    def read(name: str) -> np.ndarray:
        return weights.read(name).astype(dtypes[name], copy=False)

    total = sum(map(num_bytes, tensors))
    with tqdm(
        total=total,
        desc=f"converting {checkpoint.path.name}",
        unit="B",
        unit_scale=True,
        disable=not options.has_progress,
    ) as bar:
        files = WRITERS[options.format](folder, Source(tensors, read, bar.update, shardings))
    _write_texts(checkpoint, folder)
    # Of what is not quantized; scales are float32 whatever the model is.
    plain = [
        info.dtype
        for info in tensors
        if info.dtype in DTYPES.values() and not info.name.endswith(f".{SCALE}")
    ]
    saved_dtype = max(set(plain), key=plain.count)
    _write_json(folder / "config.json", _config(weights.config, saved_dtype))
    described = {
        info.name: {
            "shape": list(info.shape),
            "dtype": info.dtype.name,
            "file": files[info.name],
        }
        for info in tensors
    }
    manifest = Manifest(
        source=str(checkpoint.path.absolute()),
        source_sha256=sha256_of(checkpoint.files),
        format=options.format,
        dtype=options.dtype,
        tensors=described,
        tool=_tool(),
    )
    write_manifest(folder, manifest)


def _shardings(weights: _Weights, tp: int) -> dict[str, NamedSharding]:
    """How so many devices share the tensors; none for one device."""
    if tp == 1:
        return {}
    mesh = make_mesh(tp, model=weights.model, devices=jax.devices("cpu"))
    return {
        info.name: named_sharding(mesh, weights.axes[info.name], info.shape)
        for info in weights.tensors
        if info.name in weights.axes
    }


def _tool() -> str:
    try:
        return f"rtpjax {importlib.metadata.version('rtpjax')}"
    except importlib.metadata.PackageNotFoundError:
        return "rtpjax, run from its source folder"


def _target(info: TensorInfo, weights: _Weights, dtype: str) -> TensorInfo:
    """How a tensor is written: scales and quantized numbers as they are."""
    if info.dtype not in DTYPES.values() or info.name.endswith(f".{SCALE}"):
        return info
    if dtype != "auto":
        return dataclasses.replace(info, dtype=DTYPES[dtype])
    return dataclasses.replace(info, dtype=DTYPES["bfloat16"]) if weights.is_rounded else info


def _config(config: dict[str, Any], dtype: np.dtype) -> dict[str, Any]:
    # transformers 5 writes "dtype", earlier ones "torch_dtype"; both read the second.
    rest = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    return {**rest, "torch_dtype": dtype.name}


def _write_texts(checkpoint: Checkpoint, folder: Path) -> None:
    """Tokenizer, chat template and generation_config.json."""
    if isinstance(checkpoint, GgufCheckpoint):
        _write_tokenizer(load_tokenizer(checkpoint.path), folder)
        config = checkpoint.config
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        _write_json(
            folder / "generation_config.json", {key: config[key] for key in keys if key in config}
        )
        return
    for name in _TEXT_FILES:
        if (checkpoint.path / name).is_file():
            shutil.copyfile(checkpoint.path / name, folder / name)
    if (checkpoint.path / _TEMPLATES_FOLDER).is_dir():
        shutil.copytree(checkpoint.path / _TEMPLATES_FOLDER, folder / _TEMPLATES_FOLDER)


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    # transformers 5 writes a name that 4 does not know; both know this one.
    options = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    _write_json(file, options)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")
