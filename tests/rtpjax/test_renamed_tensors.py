"""Families of experts whose published checkpoints name tensors otherwise than the model.

The names are those of the model cards' index files: mistralai/Mixtral-8x7B-v0.1,
MiniMaxAI/MiniMax-M2, tencent/Hy3, ibm-granite/granite-3.1-3b-a800m-base, zai-org/GLM-4.5-Air,
Qwen/Qwen2-57B-A14B and allenai/OLMoE-1B-7B-0924.
"""

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

BY_EXPERT = {
    f"mlp.experts.{name}.weight": f"mlp.experts.{{e}}.{name}.weight"
    for name in ("gate_proj", "up_proj", "down_proj")
}
W = {
    "mlp.gate.weight": "block_sparse_moe.gate.weight",
    "mlp.experts.gate_proj.weight": "block_sparse_moe.experts.{e}.w1.weight",
    "mlp.experts.up_proj.weight": "block_sparse_moe.experts.{e}.w3.weight",
    "mlp.experts.down_proj.weight": "block_sparse_moe.experts.{e}.w2.weight",
}
BIAS = "mlp.gate.e_score_correction_bias"
HUB: dict[str, dict[str, str]] = {
    "mixtral": W,
    "minimax_m2": W | {BIAS: "block_sparse_moe.e_score_correction_bias"},
    "hy_v3": BY_EXPERT
    | {"mlp.gate.weight": "mlp.router.gate.weight", BIAS: "mlp.expert_bias"}
    | {
        f"mlp.shared_experts.{name}.weight": f"mlp.shared_mlp.{name}.weight"
        for name in ("gate_proj", "up_proj", "down_proj")
    },
    "granite_moe": {
        "mlp.gate.weight": "block_sparse_moe.router.layer.weight",
        "mlp.experts.gate_proj.weight": "block_sparse_moe.input_linear.weight",
        "mlp.experts.up_proj.weight": "block_sparse_moe.input_linear.weight",
        "mlp.experts.down_proj.weight": "block_sparse_moe.output_linear.weight",
    },
    "glm4_moe": BY_EXPERT,
    "qwen2_moe": BY_EXPERT,
    "olmoe": BY_EXPERT,
}


def config(case_name: str) -> dict[str, Any]:
    return dict(cases.CASES[case_name].config)


def as_published(case_name: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        layer, _, rest = name.partition("mlp.")
        stored = layer + HUB[case_name].get(f"mlp.{rest}", f"mlp.{rest}") if rest else name
        if "{e}" in stored:
            tensors |= {stored.format(e=e): one for e, one in enumerate(value)}
        elif stored in tensors:  # gate before up
            tensors[stored] = np.concatenate([tensors[stored], value], axis=1)
        else:
            tensors[stored] = value
    return tensors


@pytest.mark.parametrize("case_name", HUB)
@pytest.mark.parametrize(("tp_size", "ep_size"), [(1, 1), (2, 2)])
def test_every_shard_is_its_slice(tmp_path: Path, case_name: str, tp_size: int, ep_size: int):
    weights = tiny.weights(config(case_name))
    tensors = as_published(case_name, weights)
    assert not [name for name in tensors if name in weights and ".experts." in name]
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", config(case_name), tensors))
    mesh = make_mesh(tp_size, ep_size=ep_size, model=ModelConfig.from_hf(config(case_name)))
    params = load_params(checkpoint, tiny.specs(config(case_name)), mesh)
    assert params.keys() == weights.keys()
    for name, value in params.items():
        for shard in value.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), weights[name][shard.index])


@pytest.mark.parametrize("case_name", HUB)
def test_a_conversion_keeps_the_names(tmp_path: Path, case_name: str):
    weights = tiny.weights(config(case_name))
    tensors = as_published(case_name, weights)
    convert(
        tiny.write_folder(tmp_path / "m", config(case_name), tensors),
        tmp_path / "out",
        Conversion(),
    )
    converted = open_checkpoint(tmp_path / "out")
    check_tensors(converted, tiny.specs(config(case_name)))
    for name in (name for name in weights if "layers.1.mlp" in name):
        np.testing.assert_array_equal(converted.read(name), weights[name])


@pytest.mark.parametrize("case_name", HUB)
def test_what_is_missing_or_too_much_is_named(tmp_path: Path, case_name: str):
    tensors = as_published(case_name, tiny.weights(config(case_name)))
    down = as_published(
        case_name, {"model.layers.1.mlp.experts.down_proj.weight": np.zeros((1, 1))}
    )
    del tensors[next(iter(down))]
    tensors["model.layers.1.mlp.extra.weight"] = np.zeros(3, np.float32)
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", config(case_name), tensors))
    with pytest.raises(CheckpointError) as caught:
        check_tensors(checkpoint, tiny.specs(config(case_name)))
    assert "experts.down_proj.weight" in str(caught.value)
    assert "model.layers.1.mlp.extra.weight" in str(caught.value)


@pytest.mark.parametrize("case_name", ["glm4_moe", "hy_v3"])
def test_layers_that_predict_further_tokens_are_left_out(
    tmp_path: Path, case_name: str, caplog: pytest.LogCaptureFixture
):
    tensors = as_published(case_name, tiny.weights(config(case_name)))
    tensors |= {
        f"model.layers.3.{name}": np.zeros((2, 2), np.float32)
        for name in ("eh_proj.weight", "enorm.weight", "mlp.experts.0.gate_proj.weight")
    }
    folder = tiny.write_folder(
        tmp_path / "m", config(case_name) | {"num_nextn_predict_layers": 1}, tensors
    )
    with caplog.at_level(logging.INFO):
        checkpoint = open_checkpoint(folder)
    assert "3 tensors of layers that predict further tokens" in caplog.text
    check_tensors(checkpoint, tiny.specs(config(case_name)))


def test_two_names_of_one_tensor_are_refused(tmp_path: Path):
    tensors = as_published("mixtral", tiny.weights(config("mixtral")))
    tensors["model.layers.0.mlp.gate.weight"] = tensors[
        "model.layers.0.block_sparse_moe.gate.weight"
    ]
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", config("mixtral"), tensors))
    with pytest.raises(CheckpointError, match=r"doubled.*\n.*block_sparse_moe.gate"):
        check_tensors(checkpoint, tiny.specs(config("mixtral")))
