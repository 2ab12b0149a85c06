from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
import tensorstore

from checkpoints_conv import convert as convert_module
from checkpoints_conv import writers
from checkpoints_conv.__main__ import main
from checkpoints_conv.convert import DTYPES, Conversion, convert
from checkpoints_conv.manifest import read_manifest, sha256_of
from checkpoints_conv.readers import open_checkpoint
from rtpjax.checkpoint import Checkpoint, load_params
from rtpjax.errors import CheckpointError
from rtpjax.models import ModelConfig, Precision, abstract_state
from rtpjax.quantized_checkpoint import QuantizedCheckpoint, wanted_quantization
from rtpjax.sharding import make_mesh, named_sharding
from tests.checkpoints_conv import tiny

QUIET = Conversion(has_progress=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    config = tiny.config()
    return tiny.write_folder(tmp_path / "source", config, tiny.weights(config))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", writers.WRITERS)
@pytest.mark.parametrize("tp_size", [1, 2])
def test_a_conversion_holds_the_same_weights_on_any_mesh(
    source: Path, tmp_path: Path, format: str, dtype: str, tp_size: int
) -> None:
    arguments = [str(source), str(tmp_path / "out"), "--format", format, "--dtype", dtype]
    assert main(arguments) == 0
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "out")
    assert after.format == format
    assert after.config["torch_dtype"] == dtype
    specs = abstract_state(ModelConfig.from_hf(after.config), Precision.of("FP32", "cpu"))
    params = load_params(after, specs, make_mesh(tp_size))
    jax.block_until_ready(params)
    for name, value in params.items():
        expected = before.read(name).astype(DTYPES[dtype]).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(value), expected)
        assert after.tensors[name].dtype == DTYPES[dtype]
        assert len(value.sharding.device_set) == tp_size
    name, index = "model.embed_tokens.weight", (slice(3, 9), slice(None, 5))
    expected = before.read(name).astype(DTYPES[dtype])[index]
    np.testing.assert_array_equal(after.read(name, index), expected)


def test_orbax_in_the_shards_of_four_devices_restores_onto_any_number(
    source: Path, tmp_path: Path
) -> None:
    assert main([str(source), str(tmp_path / "out"), "--tp", "4"]) == 0
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "out")
    assert after.format == "orbax"
    specs, model = tiny.specs(before.config), ModelConfig.from_hf(before.config)
    four = make_mesh(4, model=model)
    for name, spec in specs.items():
        shard = named_sharding(four, spec.axes, spec.shape).shard_shape(spec.shape)
        chunk = _chunk_shape(tmp_path / "out", name)  # orbax cuts copies of a shard once more
        assert all(size % part == 0 for size, part in zip(shard, chunk, strict=True))
    for tp_size, dp_size in [(1, 1), (2, 1), (4, 1), (2, 2), (8, 1)]:
        mesh = make_mesh(tp_size, dp_size=dp_size, model=model)
        for name, value in load_params(after, specs, mesh).items():
            assert value.sharding == named_sharding(mesh, specs[name].axes, specs[name].shape)
            np.testing.assert_array_equal(np.asarray(value), before.read(name))


def _chunk_shape(folder: Path, name: str) -> tuple[int, ...]:
    """What tensorstore reads at once."""
    manifest = read_manifest(folder)
    assert manifest is not None
    base = (folder / manifest.tensors[name]["file"]).absolute()
    store = {"driver": "ocdbt", "base": f"file://{base}/", "path": f"{name}/"}
    opened = tensorstore.open({"driver": "zarr", "kvstore": store}).result()
    return tuple(opened.chunk_layout.read_chunk.shape)


def test_tp_refuses_what_cannot_be_split_and_other_formats(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main([str(source), out, "--tp", "5"]) == 1
    assert "Set TP_SIZE to one of [1, 2, 4, 8]" in capsys.readouterr().err
    assert main([str(source), out, "--tp", "2", "--format", "safetensors"]) == 2
    assert "leave --format out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", writers.WRITERS)
@pytest.mark.parametrize("method", ["int8", "int4", "fp8"])
def test_a_quantized_conversion_loads_as_quantizing_while_loading_does(
    source: Path, tmp_path: Path, format: str, method: str
) -> None:
    arguments = [str(source), str(tmp_path / "out"), "--quantize", method, "--format", format]
    assert main([*arguments, "--dtype", "bfloat16"]) == 0
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "out")
    assert after.config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert after.config["torch_dtype"] == "bfloat16"
    assert after.tensors["model.norm.weight"].dtype == tiny.BF16
    loaded = []
    for checkpoint, wanted_method in ((before, method), (after, None)):
        config = ModelConfig.from_hf(checkpoint.config)
        wanted = wanted_quantization(config, wanted_method)
        model = dataclasses.replace(config, quantization=wanted)
        specs = abstract_state(model, Precision.of("BF16", "gpu"))
        view = QuantizedCheckpoint(checkpoint, config, wanted, wanted, specs)
        loaded.append(load_params(view, specs, make_mesh(2)))
    assert loaded[0].keys() == loaded[1].keys()
    for name, value in loaded[0].items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(loaded[1][name]), name)
    with pytest.raises(CheckpointError, match="is quantized already"):
        convert(tmp_path / "out", tmp_path / "twice", Conversion(quantize="int8"))


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_quantized_matrices_lie_in_the_shards_of_devices(
    source: Path, tmp_path: Path, method: str
) -> None:
    assert main([str(source), str(tmp_path / "out"), "--quantize", method, "--tp", "4"]) == 0
    assert main([str(source), str(tmp_path / "one"), "--quantize", method]) == 0
    after, one = open_checkpoint(tmp_path / "out"), open_checkpoint(tmp_path / "one")
    assert after.format == "orbax" and after.tensors.keys() == one.tensors.keys()
    for name in one.tensors:
        np.testing.assert_array_equal(after.read(name), one.read(name), name)
    name = next(n for n in one.tensors if n.endswith(("up_proj.weight", "up_proj.weight_packed")))
    num_outputs = one.tensors[name].shape[0]
    assert num_outputs // 4 % _chunk_shape(tmp_path / "out", name)[0] == 0


def test_a_quantized_source_becomes_a_plain_folder(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "int8", Conversion(quantize="int8", has_progress=False))
    convert(tmp_path / "int8", tmp_path / "plain", QUIET)
    plain, original = open_checkpoint(tmp_path / "plain"), open_checkpoint(source)
    assert "quantization_config" not in plain.config
    for name in original.tensors:
        exact = original.read(name).astype(np.float32)
        error = np.abs(plain.read(name).astype(np.float32) - exact).max()
        assert error < 0.02 * np.abs(exact).max()
        assert plain.tensors[name].dtype == tiny.BF16


@pytest.mark.parametrize("format", writers.WRITERS)
def test_weights_are_written_in_groups(
    source: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_small(folder: Path, tensors: writers.Source) -> dict[str, str]:
        return {"safetensors": writers.write_safetensors, "orbax": writers.write_orbax}[format](
            folder, tensors, 30_000
        )

    monkeypatch.setattr(convert_module, "WRITERS", {format: write_small})
    convert(source, tmp_path / "out", Conversion(format=format, has_progress=False))
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert len({entry["file"] for entry in manifest.tensors.values()}) > 3
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "out")
    specs = tiny.specs(before.config)
    for name, value in load_params(after, specs, make_mesh(2)).items():
        np.testing.assert_array_equal(np.asarray(value), before.read(name))


def test_a_quantized_gguf_becomes_a_whole_folder(tmp_path: Path) -> None:
    config = tiny.config()
    weights = tiny.weights(config)
    path = tiny.write_gguf(
        tmp_path / "m.gguf", config, weights, quantization=gguf.GGMLQuantizationType.Q4_1
    )
    convert(path, tmp_path / "out", QUIET)
    before, after = open_checkpoint(path), open_checkpoint(tmp_path / "out")
    for name in weights:
        np.testing.assert_array_equal(after.read(name), before.read(name).astype(tiny.BF16))
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2


def test_the_manifest_says_where_it_came_from(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text('{"a": 1}')
    convert(source, tmp_path / "out", Conversion(dtype="bfloat16", has_progress=False))
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.source == str(source)
    files = [source / "config.json", source / "model.safetensors"]
    assert manifest.source_sha256 == sha256_of(files)
    assert manifest.tensors["model.norm.weight"] == {
        "shape": [64], "dtype": "bfloat16", "file": "model.safetensors",
    }  # fmt: skip
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"a": 1}'


def test_an_existing_destination_is_kept_unless_forced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="--force"):
        convert(source, out, QUIET)
    assert (out / "mine.txt").exists()
    convert(source, out, Conversion(force=True, has_progress=False))
    assert not (out / "mine.txt").exists()
    assert open_checkpoint(out).format == "safetensors"
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_a_source_that_does_not_fit_its_model_is_refused(tmp_path: Path) -> None:
    config = tiny.config()
    weights = tiny.weights(config)
    del weights["model.norm.weight"]
    broken = tiny.write_folder(tmp_path / "a", config, weights)
    with pytest.raises(CheckpointError, match=r"missing \(1\)"):
        convert(broken, tmp_path / "out", QUIET)
    unknown = {**config, "architectures": ["GrokForCausalLM"]}
    with pytest.raises(CheckpointError, match="GrokForCausalLM"):
        convert(tiny.write_folder(tmp_path / "b", unknown, weights), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_some(folder: Path, tensors: writers.Source) -> dict[str, str]:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_module, "WRITERS", {"safetensors": write_some})
    with pytest.raises(CheckpointError, match="No space left"):
        convert(source, tmp_path / "out", QUIET)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_main_reports_errors_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 1
    assert "error:" in capsys.readouterr().err


# The child says when it begins to write, and is killed after a random time. It pauses at each step
# (a tensor, a file, a sync), so that the time can fall between any two.
SLOW_CONVERSION = """
import pathlib, sys, time
from checkpoints_conv import convert

def slowly(function):
    def wrapped(*arguments):
        time.sleep(0.02)
        return function(*arguments)
    return wrapped

source = convert.Source
convert.Source = lambda tensors, read, progress: source(tensors, slowly(read), progress)
convert._write_json = slowly(convert._write_json)
convert.write_manifest = slowly(convert.write_manifest)
convert._sync_one = slowly(convert._sync_one)
print("begin", flush=True)
convert.convert(*map(pathlib.Path, sys.argv[1:3]), convert.Conversion(has_progress=False))
"""


@pytest.mark.slow
def test_a_killed_conversion_leaves_no_folder_that_loads(source: Path, tmp_path: Path) -> None:
    expected = open_checkpoint(source)
    out = tmp_path / "out"
    num_interrupted = 0
    for delay_s in [0.1, *np.random.default_rng(0).uniform(0.0, 1.0, 5)]:
        with subprocess.Popen(
            [sys.executable, "-c", SLOW_CONVERSION, str(source), str(out)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"begin\n"
            time.sleep(delay_s)
            child.send_signal(signal.SIGKILL)
        num_interrupted += not out.exists()
        if out.exists():
            assert read_manifest(out) is not None
        for folder in tmp_path.glob("*out*"):
            _check_complete_or_unreadable(folder, expected)
            shutil.rmtree(folder)
    assert num_interrupted > 0


def _check_complete_or_unreadable(folder: Path, expected: Checkpoint) -> None:
    try:
        left = open_checkpoint(folder)
    except CheckpointError:
        assert folder.name != "out"
        return
    assert left.tensors.keys() == expected.tensors.keys()
    for name in expected.tensors:
        np.testing.assert_array_equal(left.read(name), expected.read(name))
