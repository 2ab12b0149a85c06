"""Random weights: the same on every mesh, of one size in every format."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from checkpoints_conv.convert import Conversion, convert
from checkpoints_conv.readers import open_checkpoint
from rtpjax.checkpoint import load_params
from rtpjax.dummy_checkpoint import DummyCheckpoint, find_config, name_of
from rtpjax.errors import CheckpointError, ConfigError
from rtpjax.models import ModelConfig, Precision, abstract_state
from rtpjax.models.weight_formats import Int4
from rtpjax.plan import presets
from rtpjax.quantized_checkpoint import in_formats
from rtpjax.sharding import make_mesh
from tests.golden import cases
from tests.rtpjax.test_quantized_checkpoint import CASES as QUANTIZED
from tests.rtpjax.test_quantized_checkpoint import CONFIG

FP32 = Precision.of("FP32", "cpu")
MOE = cases.CASES["qwen3_moe"].config


def drawn(
    config: dict[str, Any], method: str | None = None, platform: str = "gpu", seed: int = 0, **mesh
) -> tuple[ModelConfig, dict[str, jax.Array]]:
    """A model and its parameters, as load_engine makes them."""
    checkpoint = DummyCheckpoint(config, seed=seed)
    model, specs, view = in_formats(checkpoint, method, FP32, platform)
    params = load_params(view, specs, make_mesh(**{"tp_size": 1, **mesh}, model=model))
    assert {n: (p.shape, p.dtype) for n, p in params.items()} == {
        n: (s.shape, s.dtype) for n, s in specs.items()
    }
    return model, params


@pytest.mark.parametrize("method", [None, "int4"])  # the latter has an int8 head
def test_values_are_the_same_on_every_mesh(method):
    _, one = drawn(CONFIG, method)
    _, two = drawn(CONFIG, method, tp_size=2)
    name = "model.layers.0.mlp.down_proj.weight"
    assert len(two[name].sharding.device_set) == 2
    assert two[name].addressable_shards[0].data.shape[1] * 2 == one[name].shape[1]
    for name, values in one.items():
        np.testing.assert_array_equal(np.asarray(values), np.asarray(two[name]), err_msg=name)


def test_experts_are_the_same_however_they_are_split():
    _, one = drawn(MOE)
    _, two = drawn(MOE, tp_size=2, ep_size=2)
    name = next(name for name in one if "experts.down_proj" in name)
    assert two[name].addressable_shards[0].data.shape[0] * 2 == one[name].shape[0]
    for name, values in one.items():
        np.testing.assert_array_equal(np.asarray(values), np.asarray(two[name]), err_msg=name)


def test_a_slice_is_read_as_it_was_drawn():
    model, params = drawn(CONFIG)
    view = DummyCheckpoint(CONFIG).in_formats(abstract_state(model, FP32))
    name = "model.layers.0.self_attn.q_proj.weight"
    index = slice(3, 9), slice(0, 4)
    np.testing.assert_array_equal(view.read(name, index), np.asarray(params[name])[index])


def test_tensors_and_seeds_differ():
    _, params = drawn({**CONFIG, "num_hidden_layers": 2})
    _, other = drawn({**CONFIG, "num_hidden_layers": 2}, seed=1)
    name = "model.layers.{}.mlp.up_proj.weight"
    assert not np.array_equal(params[name.format(0)], params[name.format(1)])
    assert not np.array_equal(params[name.format(0)], other[name.format(0)])


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("case", [None, "int8", "int4", "fp8", *QUANTIZED])
def test_every_format_stands_for_weights_of_one_size(case, platform):
    """Standard deviation 0.02 around 0, whatever numbers and scales are kept; norms are 1."""
    config, method = CONFIG, case
    if case in QUANTIZED:
        config, method = {**CONFIG, "quantization_config": QUANTIZED[case][0]}, None
    model, params = drawn(config, method, platform)
    arrays = {name: np.asarray(values) for name, values in params.items()}
    modules = [name.removesuffix(".weight") for name in arrays if name.endswith("_proj.weight")]
    assert len(modules) == 7
    for module in modules:
        format = model.quantization.of(module)
        matrix = format.decode({part: arrays[f"{module}.{part}"] for part in format.parts})
        assert abs(matrix.std() / 0.02 - 1) < 0.05, (module, matrix.std())
        assert abs(matrix.mean()) < 0.0005, (module, matrix.mean())
    assert (arrays["model.norm.weight"] == 1).all()
    if platform == "gpu" and case == "int4":
        assert isinstance(model.quantization.layers, Int4)


def test_biases_are_drawn_as_declared():
    _, params = drawn(cases.CASES["llama_biases"].config)
    biases = [np.asarray(v) for name, v in params.items() if name.endswith(".bias")]
    assert biases and all((values == 0).all() for values in biases)


def test_experts_are_not_quantized():
    with pytest.raises(ConfigError, match="int8 is for models without experts"):
        drawn(MOE, "int8")


@pytest.mark.parametrize("named", [None, "smollm2-135m", "SmolLM2-135M"])
def test_a_preset_by_name(named):
    path = find_config(named)
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "dummy"
    assert checkpoint.config == presets.load("smollm2-135m")
    assert name_of(path) == "smollm2-135m-dummy"


def test_a_folder_and_a_file(tmp_path: Path, caplog):
    folder = tmp_path / "Llama-3.1-Tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_text("not read")
    (tmp_path / "own.json").write_text(json.dumps(CONFIG))
    path = find_config(str(folder))
    assert name_of(path) == "Llama-3.1-Tiny-dummy"
    assert name_of(find_config(str(tmp_path / "own.json"))) == "own-dummy"
    with caplog.at_level(logging.WARNING):
        assert open_checkpoint(path).config == CONFIG
    assert "The weights are random (LOAD_FORMAT=dummy)" in caplog.text


def test_a_hub_id_gives_its_config(tmp_path: Path):
    asked = []
    path = find_config("org/model", lambda name: asked.append(name) or tmp_path)
    assert (asked, path) == (["org/model"], tmp_path / "config.json")


def test_what_is_no_config(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"llama-9: no such .*Presets: gemma-3-27b, "):
        find_config("llama-9")
    with pytest.raises(CheckpointError, match=r"there is no config\.json"):
        find_config(str(tmp_path))
    (tmp_path / "m.gguf").write_text("")
    with pytest.raises(CheckpointError, match=r"makes a model of a config\.json"):
        find_config(str(tmp_path / "m.gguf"))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="expected a JSON object, found list"):
        open_checkpoint(find_config(str(tmp_path)))


def test_random_weights_are_not_converted(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match="has no weights; name its folder"):
        convert(tmp_path / "config.json", tmp_path / "out", Conversion())
    assert not (tmp_path / "out").exists()
