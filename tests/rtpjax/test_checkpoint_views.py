"""Checkpoints that name or join tensors otherwise than the model are read as the model's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints_conv.convert import Conversion, convert
from checkpoints_conv.readers import open_checkpoint
from rtpjax.checkpoint import check_tensors, load_params
from rtpjax.errors import CheckpointError
from rtpjax.models import ModelConfig
from rtpjax.sharding import make_mesh
from tests.checkpoints_conv import tiny
from tests.golden import cases

PHI3: dict[str, Any] = dict(cases.CASES["phi3"].config)
GEMMA3: dict[str, Any] = dict(cases.CASES["gemma3"].config)
_PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def joined(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As transformers saves Phi-3."""
    tensors = dict(weights)
    for whole, parts in _PARTS.items():
        for name in [name for name in weights if f".{parts[0]}." in name]:
            values = [tensors.pop(name.replace(parts[0], part)) for part in parts]
            tensors[name.replace(parts[0], whole)] = np.concatenate(values)
    return tensors


@pytest.mark.parametrize("tp_size", [1, 2])
def test_every_shard_of_a_joined_matrix_is_its_slice(tmp_path: Path, tp_size: int):
    weights = tiny.weights(PHI3)
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", PHI3, joined(weights)))
    mesh = make_mesh(tp_size, model=ModelConfig.from_hf(PHI3))
    params = load_params(checkpoint, tiny.specs(PHI3), mesh)
    assert params.keys() == weights.keys()
    for name, value in params.items():
        for shard in value.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), weights[name][shard.index])


def test_a_conversion_keeps_the_names_of_joined_matrices(tmp_path: Path):
    tensors = joined(tiny.weights(PHI3))
    source = tiny.write_folder(tmp_path / "m", PHI3, tensors)
    convert(source, tmp_path / "out", Conversion())
    converted = open_checkpoint(tmp_path / "out")
    check_tensors(converted, tiny.specs(PHI3))
    name = "model.layers.0.self_attn.k_proj.weight"
    np.testing.assert_array_equal(converted.read(name), tiny.weights(PHI3)[name])


def test_a_joined_matrix_of_a_wrong_height_is_named(tmp_path: Path):
    tensors = joined(tiny.weights(PHI3))
    name = "model.layers.1.self_attn.qkv_proj.weight"
    tensors[name] = tensors[name][:-1]
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", PHI3, tensors))
    with pytest.raises(CheckpointError, match=name):
        check_tensors(checkpoint, tiny.specs(PHI3))


@pytest.mark.parametrize("style", ["language_model.model.", "model.language_model."])
def test_the_text_model_of_one_that_sees_images(
    tmp_path: Path, style: str, caplog: pytest.LogCaptureFixture
):
    weights = tiny.weights(GEMMA3)
    tensors = {name.replace("model.", style, 1): value for name, value in weights.items()}
    tensors |= {
        "vision_tower.encoder.weight": np.ones((2, 2), np.float32),
        "multi_modal_projector.weight": np.ones((2, 2), np.float32),
    }
    text = {k: v for k, v in GEMMA3.items() if k not in ("architectures", "eos_token_id")}
    whole = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "eos_token_id": [1, 106],
        "text_config": text,
        "vision_config": {},
    }
    with caplog.at_level(logging.WARNING):
        checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", whole, tensors))
    assert "multi_modal_projector, vision_tower" in caplog.text
    config = ModelConfig.from_hf(checkpoint.config)
    assert config.eos_token_ids == (1, 106)
    params = load_params(checkpoint, tiny.specs(checkpoint.config), make_mesh(1))
    for name, value in params.items():
        stored = weights[name] + (1.0 if "norm" in name else 0.0)
        np.testing.assert_array_equal(np.asarray(value), stored)
