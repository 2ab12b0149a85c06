"""gpt-oss: experts in MXFP4 and plain, as openai/gpt-oss-20b and transformers save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
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

# Sizes that all differ: a square hides an exchange of in and out.
CONFIG: dict[str, Any] = cases.CASES["gpt_oss"].config | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_local_experts": 4,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers"]},
}
LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def interleaved(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    both = np.empty((gate.shape[0], 2 * gate.shape[1], *gate.shape[2:]), gate.dtype)
    both[:, 0::2], both[:, 1::2] = gate, up
    return both


def mxfp4(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks and scales of numbers that MXFP4 holds, digit by digit."""
    groups = values.astype(np.float64).reshape(*values.shape[:-1], -1, 32)
    power = np.ceil(np.log2(np.maximum(np.abs(groups).max(axis=-1), 1e-9) / 6))
    digits = groups / 2.0 ** power[..., None]
    nibbles = np.abs(np.abs(digits)[..., None] - LEVELS).argmin(axis=-1) + 8 * (digits < 0)
    blocks = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
    return blocks.astype(np.uint8), (power + 127).astype(np.uint8)


def weights() -> dict[str, np.ndarray]:
    """Random values; experts' are numbers that MXFP4 holds."""
    rng = np.random.default_rng(0)
    found = tiny.weights(CONFIG)
    for name, value in found.items():
        if ".experts." in name and name.endswith(".weight"):
            digits = rng.choice(LEVELS, value.shape) * rng.choice([-1, 1], value.shape)
            digits[..., ::32] = 6  # the scale of a block follows from its largest number
            powers = rng.integers(-4, 3, (*value.shape[:-1], value.shape[-1] // 32))
            found[name] = (digits * 2.0 ** np.repeat(powers, 32, axis=-1)).astype(np.float32)
    return found


def published(values: dict[str, np.ndarray], *, packed: bool) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, value in values.items():
        layer, found, rest = name.partition(".experts.")
        if not found:
            tensors[name.replace(".mlp.gate.", ".mlp.router.")] = value
            continue
        which, _, kind = rest.partition(".")
        if which == "up_proj":
            continue
        stored = f"{layer}.experts.down_proj"
        if which == "gate_proj":
            stored = f"{layer}.experts.gate_up_proj"
            value = interleaved(value, values[name.replace("gate_proj", "up_proj")])
        if kind == "bias":
            tensors[f"{stored}_bias"] = value
        elif packed:
            tensors[f"{stored}_blocks"], tensors[f"{stored}_scales"] = mxfp4(value)
        else:
            tensors[stored] = value.swapaxes(1, 2)
    return tensors


@pytest.mark.parametrize("packed", [True, False], ids=["mxfp4", "plain"])
@pytest.mark.parametrize(("tp_size", "ep_size"), [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_every_shard_is_its_slice(tmp_path: Path, packed: bool, tp_size: int, ep_size: int):
    expected = weights()
    tensors = published(expected, packed=packed)
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", CONFIG, tensors))
    mesh = make_mesh(tp_size, ep_size=ep_size, model=ModelConfig.from_hf(CONFIG))
    params = load_params(checkpoint, tiny.specs(CONFIG), mesh)
    assert params.keys() == expected.keys()
    for name, value in params.items():
        for shard in value.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), expected[name][shard.index])


def test_every_digit_and_power_is_read(tmp_path: Path):
    """All 256 bytes, and powers from the least that float32 holds to the largest."""
    tensors = published(weights(), packed=True)
    name = "model.layers.0.mlp.experts.down_proj"
    blocks, scales = tensors[f"{name}_blocks"], tensors[f"{name}_scales"]
    blocks[...] = np.arange(blocks.size).reshape(blocks.shape) % 256
    scales[...] = np.linspace(2, 250, scales.size).reshape(scales.shape)
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", CONFIG, tensors))
    read = checkpoint.read(f"{name}.weight")
    assert read.dtype == ml_dtypes.bfloat16
    levels = [*LEVELS, *-LEVELS]
    for where in np.ndindex(*scales.shape):
        bits = [nibble for byte in blocks[where] for nibble in (byte & 15, byte >> 4)]
        expected = [levels[bit] * 2.0 ** (int(scales[where]) - 127) for bit in bits]
        *row, block = where
        np.testing.assert_array_equal(
            read[tuple(row)][32 * block : 32 * block + 32].astype(np.float64), expected
        )


@pytest.mark.parametrize("part", ["_blocks", "_scales"])
def test_half_of_a_packed_matrix_is_named(tmp_path: Path, part: str):
    tensors = published(weights(), packed=True)
    del tensors[f"model.layers.1.mlp.experts.gate_up_proj{part}"]
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", CONFIG, tensors))
    with pytest.raises(CheckpointError) as caught:
        check_tensors(checkpoint, tiny.specs(CONFIG))
    assert "layers.1.mlp.experts.gate_up_proj_" in str(caught.value)
    assert "layers.1.mlp.experts.up_proj.weight" in str(caught.value)


@pytest.mark.parametrize("packed", [True, False], ids=["mxfp4", "plain"])
def test_a_conversion_loads_as_what_it_was_made_from(tmp_path: Path, packed: bool):
    expected = weights()
    source = tiny.write_folder(tmp_path / "m", CONFIG, published(expected, packed=packed))
    convert(source, tmp_path / "out", Conversion())
    params = load_params(open_checkpoint(tmp_path / "out"), tiny.specs(CONFIG), make_mesh(1))
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(params[name]), value)
