"""Pointers of Git LFS in the place of any file of a checkpoint, and parts of GGUF files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints_conv.readers import open_checkpoint
from rtpjax.errors import CheckpointError
from rtpjax.lfs import is_pointer
from rtpjax.tokenizer import eos_token_ids, load_tokenizer
from tests.checkpoints_conv import tiny
from tests.server.scripted_engine import make_tokenizer

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def load(folder: Path) -> None:
    """Reads all that a server reads of a checkpoint."""
    checkpoint = open_checkpoint(folder)
    eos_token_ids(folder, checkpoint.config, load_tokenizer(folder))


def write_checkpoint(folder: Path) -> Path:
    config = tiny.config()
    tiny.write_folder(folder, config, tiny.weights(config), max_bytes=30_000)
    make_tokenizer().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return folder


def test_every_file_of_a_checkpoint_is_looked_at(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    load(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    assert len(files) > 7
    for file in files:
        content = file.read_bytes()
        file.write_text(POINTER)
        with pytest.raises(CheckpointError, match="git lfs pull") as caught:
            load(folder)
        assert file.name in str(caught.value) and str(folder) in str(caught.value)
        file.write_bytes(content)
    load(folder)


def test_a_gguf_pointer(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text(POINTER)
    for path in (tmp_path, tmp_path / "m.gguf"):
        for read in (open_checkpoint, load_tokenizer):
            with pytest.raises(CheckpointError, match=r"m\.gguf: a Git LFS pointer.*git lfs pull"):
                read(path)


def test_files_that_nobody_reads_may_be_pointers(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "README.md"):
        (folder / name).write_text(POINTER)
    load(folder)


def test_what_is_no_pointer(tmp_path: Path) -> None:
    assert not is_pointer(tmp_path / "missing")
    (tmp_path / "long").write_text(POINTER + "x" * 1024)
    assert not is_pointer(tmp_path / "long")


@pytest.mark.parametrize("count", [2, 3])
def test_a_folder_with_the_parts_of_one_gguf(tmp_path: Path, count: int) -> None:
    for part in range(1, count + 1):
        (tmp_path / f"Big-Q4_K_M-{part:05}-of-{count:05}.gguf").write_bytes(b"GGUF")
    for read in (open_checkpoint, load_tokenizer):
        with pytest.raises(CheckpointError, match=f"split GGUF in {count} parts.*--merge"):
            read(tmp_path)
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=rf"{count + 1} \.gguf files; name one"):
        open_checkpoint(tmp_path)
