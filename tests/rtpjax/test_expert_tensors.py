"""Experts' tensors are found in every way that checkpoints save them."""

from __future__ import annotations

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

CONFIG: dict[str, Any] = dict(cases.CASES["qwen3_moe"].config)
MODEL = ModelConfig.from_hf(CONFIG)
GATE = "model.layers.1.mlp.experts.gate_proj.weight"


def per_expert(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As transformers saves them."""
    tensors = {}
    for name, value in weights.items():
        layer, found, rest = name.partition(".experts.")
        if found:
            tensors |= {f"{layer}.experts.{e}.{rest}": part for e, part in enumerate(value)}
        else:
            tensors[name] = value
    return tensors


def joined(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As transformers 5 has them in memory."""
    tensors = {}
    for name, value in weights.items():
        if name.endswith("experts.gate_proj.weight"):
            up = weights[name.replace("gate_proj", "up_proj")]
            joined_name = name.replace("gate_proj.weight", "gate_up_proj")
            tensors[joined_name] = np.concatenate([value, up], axis=1)
        elif name.endswith("experts.down_proj.weight"):
            tensors[name.removesuffix(".weight")] = value
        elif "experts.up_proj" not in name:
            tensors[name] = value
    return tensors


@pytest.mark.parametrize("saved", [per_expert, joined])
@pytest.mark.parametrize(("tp_size", "ep_size"), [(1, 1), (4, 1), (4, 2), (4, 4)])
def test_every_shard_is_its_slice(tmp_path: Path, saved, tp_size: int, ep_size: int) -> None:
    weights = tiny.weights(CONFIG)
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", CONFIG, saved(weights)))
    mesh = make_mesh(tp_size, ep_size=ep_size, model=MODEL)
    params = load_params(checkpoint, tiny.specs(CONFIG), mesh)
    for name, value in params.items():
        for shard in value.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), weights[name][shard.index])
    E, F, D = weights[GATE].shape
    shape = (E // ep_size, F * ep_size // tp_size, D)
    assert params[GATE].addressable_shards[0].data.shape == shape


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    tensors = per_expert(tiny.weights(CONFIG))
    del tensors["model.layers.1.mlp.experts.3.gate_proj.weight"]
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", CONFIG, tensors))
    with pytest.raises(CheckpointError) as caught:
        check_tensors(checkpoint, tiny.specs(CONFIG))
    assert f"missing (1):\n    {GATE}" in str(caught.value)
    assert "model.layers.1.mlp.experts.4.gate_proj.weight" in str(caught.value)
    assert "experts.3.gate" not in str(caught.value)


@pytest.mark.parametrize("saved", [per_expert, joined])
@pytest.mark.parametrize("format", ["safetensors", "orbax"])
def test_conversions_keep_names_in_safetensors_and_load(tmp_path: Path, saved, format: str) -> None:
    weights = tiny.weights(CONFIG)
    source = tiny.write_folder(tmp_path / "m", CONFIG, saved(weights))
    convert(source, tmp_path / "out", Conversion(format=format, has_progress=False))
    after = open_checkpoint(tmp_path / "out")
    for name, value in load_params(after, tiny.specs(CONFIG), make_mesh(1)).items():
        np.testing.assert_array_equal(np.asarray(value), weights[name])
    if format == "safetensors":
        assert set(after.source.tensors) == set(saved(weights))  # type: ignore[attr-defined]
