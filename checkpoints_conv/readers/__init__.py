"""Opens a checkpoint, whatever it is stored as. Pickles are never loaded."""

from __future__ import annotations

from pathlib import Path

from checkpoints_conv.manifest import read_manifest
from checkpoints_conv.readers.gguf import GgufCheckpoint
from checkpoints_conv.readers.safetensors import INDEX_NAME, SafetensorsCheckpoint
from rtpjax.checkpoint import Checkpoint, read_config
from rtpjax.dummy_checkpoint import DummyCheckpoint, is_config_file
from rtpjax.errors import CheckpointError
from rtpjax.expert_tensors import with_stacked_experts
from rtpjax.gguf_file import only_gguf
from rtpjax.interleaved_experts import with_separate_experts
from rtpjax.joined_tensors import with_separate_tensors
from rtpjax.quantized_experts import with_plain_experts
from rtpjax.renamed_tensors import with_model_names
from rtpjax.text_model import with_text_model

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint and reads its headers, no weights.

    Args:
        path: A folder in Hugging Face layout, one written by this package (safetensors or orbax), a
            .gguf file, a folder with one, or a config.json file alone, which is a model of random
            weights: whoever takes paths from users asks rtpjax.dummy_checkpoint.find_config for
            such a path, if they want that.

    Raises:
        CheckpointError: There is no checkpoint that can be read; the message says what to do.
    """
    named = with_model_names(with_text_model(_open(Path(path))))
    separate = with_separate_experts(with_separate_tensors(named))
    return with_stacked_experts(with_plain_experts(separate))


def _open(path: Path) -> Checkpoint:
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder.")
    manifest = read_manifest(path)
    if manifest is not None and manifest.format == "orbax":
        # Orbax takes 2 s to import, and only its own checkpoints need it.
        from checkpoints_conv.readers.orbax import OrbaxCheckpoint

        return OrbaxCheckpoint(path, _read_config(path), manifest)
    if (path / INDEX_NAME).exists() or any(path.glob("*.safetensors")):
        return SafetensorsCheckpoint(path, _read_config(path))
    gguf = only_gguf(path)
    if gguf is not None:
        return GgufCheckpoint(gguf)
    raise _nothing_readable(path)


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".gguf":
        return GgufCheckpoint(path)
    if is_config_file(path):
        return DummyCheckpoint.open(path)
    raise CheckpointError(
        f"{path}: only .gguf checkpoints are single files; name the folder with config.json."
    )


def _read_config(folder: Path) -> dict:
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder}: there are weights, but no config.json.")
    return read_config(file)


def _nothing_readable(path: Path) -> CheckpointError:
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        return CheckpointError(
            f"{path}: the weights are pickles ({', '.join(pickles[:3])}), which run code when they "
            "are loaded; they are not read. If you trust them, convert them where torch is "
            "installed: AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(DST) writes "
            "safetensors."
        )
    return CheckpointError(
        f"{path}: no checkpoint: expected *.safetensors with config.json, or one .gguf file."
    )
