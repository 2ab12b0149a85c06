from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from checkpoints_conv.readers import open_checkpoint
from checkpoints_conv.readers.safetensors import DTYPES
from rtpjax.errors import CheckpointError
from tests.checkpoints_conv import tiny
from tests.examples import num_examples


def test_our_files_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    config = tiny.config()
    weights = tiny.weights(config)
    folder = tiny.write_folder(tmp_path / "m", config, weights)
    theirs = load_file(folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert theirs.keys() == weights.keys() == checkpoint.tensors.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(theirs[name], value)
        np.testing.assert_array_equal(checkpoint.read(name), value)


def test_several_files_with_and_without_an_index(tmp_path: Path) -> None:
    config = tiny.config()
    weights = tiny.weights(config)
    folder = tiny.write_folder(tmp_path / "m", config, weights, max_bytes=30_000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    for _ in range(2):
        checkpoint = open_checkpoint(folder)
        assert checkpoint.tensors.keys() == weights.keys()
        assert not checkpoint.doubled
        for name, value in weights.items():
            np.testing.assert_array_equal(checkpoint.read(name), value)
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)


@pytest.mark.parametrize("code", DTYPES)
def test_every_format_and_slice(tmp_path: Path, code: str) -> None:
    values = np.arange(24).reshape(4, 6).astype(DTYPES[code])
    folder = tiny.write_folder(tmp_path / "m", {}, {"x": values})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors["x"].dtype == DTYPES[code]
    index = (slice(1, 3), slice(None, 5))
    np.testing.assert_array_equal(
        checkpoint.read("x", index).astype(np.float64), values[index].astype(np.float64)
    )


def test_fp8_is_e4m3fn() -> None:
    assert DTYPES["F8_E4M3"] == ml_dtypes.float8_e4m3fn


@settings(max_examples=num_examples(40))
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_named_with_both_sizes(
    tmp_path_factory: pytest.TempPathFactory, fraction: float
) -> None:
    config = tiny.config()
    folder = tmp_path_factory.mktemp("m")
    file = tiny.write_folder(folder, config, tiny.weights(config)) / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(int(size * fraction))
    with pytest.raises(CheckpointError, match=r"model.safetensors: truncated: expected") as caught:
        open_checkpoint(folder)
    assert f"the file has {int(size * fraction)}" in str(caught.value)


def test_an_index_that_names_missing_or_foreign_files(tmp_path: Path) -> None:
    config = tiny.config()
    folder = tiny.write_folder(tmp_path / "m", config, tiny.weights(config), max_bytes=30_000)
    (folder / "model-00002-of-00006.safetensors").unlink(missing_ok=True)
    index = folder / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values())
    gone = sorted(name for name in names if not (folder / name).exists())
    if not gone:
        gone = [sorted(names)[0]]
        (folder / gone[0]).unlink()
    with pytest.raises(CheckpointError, match=f"1 of the {len(names)} files .* {gone[0]}"):
        open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b'{"x": 3}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"x": {"dtype": "Q99", "shape": [1], "data_offsets": [0, 4]}}',
    ],
)
def test_a_header_that_is_wrong(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(CheckpointError, match="save_pretrained"):
        open_checkpoint(tmp_path)


def test_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"expected \*\.safetensors"):
        open_checkpoint(tmp_path)
    tiny.write_folder(tmp_path, {}, {"x": np.zeros(3, np.float32)})
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
