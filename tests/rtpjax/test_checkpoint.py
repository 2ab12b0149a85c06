from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from checkpoints_conv.readers import open_checkpoint
from rtpjax.checkpoint import Checkpoint, check_tensors, load_params, params_bytes
from rtpjax.errors import CheckpointError
from rtpjax.models import ModelConfig, Precision, abstract_state
from rtpjax.sharding import make_mesh, named_sharding
from tests.checkpoints_conv import tiny


@pytest.mark.parametrize("tp_size", [1, 2])
def test_every_shard_is_its_slice_of_the_checkpoint(tmp_path: Path, tp_size: int) -> None:
    config = tiny.config(tie_word_embeddings=False)
    weights = tiny.weights(config)
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", config, weights))
    specs, mesh = tiny.specs(config), make_mesh(tp_size)
    done: list[int] = []
    params = load_params(checkpoint, specs, mesh, progress=done.append)
    assert list(params) == list(specs)
    assert sum(done) == params_bytes(specs)
    for name, spec in specs.items():
        assert params[name].sharding == named_sharding(mesh, spec.axes, spec.shape)
        for shard in params[name].addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), weights[name][shard.index])
    q_proj = params["model.layers.0.self_attn.q_proj.weight"]
    assert q_proj.addressable_shards[0].data.shape == (64 // tp_size, 64)


class CountingReads:
    """A checkpoint that adds up the bytes that are read of it."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        self.num_bytes = 0

    def __getattr__(self, name: str):
        return getattr(self._checkpoint, name)

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        values = self._checkpoint.read(name, index)
        self.num_bytes += values.nbytes
        return values


@pytest.mark.parametrize(("tp_size", "dp_size"), [(1, 1), (2, 1), (4, 2), (1, 8)])
def test_each_byte_is_read_once_whatever_the_mesh(tmp_path: Path, tp_size: int, dp_size: int):
    config = tiny.config()
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", config, tiny.weights(config)))
    counting, specs = CountingReads(checkpoint), tiny.specs(config)
    model = ModelConfig.from_hf(config)
    mesh = make_mesh(tp_size, dp_size=dp_size, model=model)
    load_params(counting, specs, mesh)  # type: ignore[arg-type]
    assert counting.num_bytes == params_bytes(specs)


_HOST = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from checkpoints_conv.readers import open_checkpoint
from rtpjax.checkpoint import load_params
from rtpjax.models import ModelConfig
from rtpjax.sharding import make_mesh
from tests.checkpoints_conv import tiny
from tests.rtpjax.test_checkpoint import CountingReads
counting = CountingReads(open_checkpoint(sys.argv[3]))
mesh = make_mesh(4, model=ModelConfig.from_hf(counting.config))
params = load_params(counting, tiny.specs(counting.config), mesh)
owned = {
    name: {str(shard.index): shard.data.nbytes for shard in value.addressable_shards}
    for name, value in params.items()
}
print(counting.num_bytes, sum(sum(shards.values()) for shards in owned.values()))
"""


def test_a_host_reads_what_its_devices_keep_and_no_more(tmp_path: Path) -> None:
    config = tiny.config(num_attention_heads=8, num_key_value_heads=4)
    weights = tiny.weights(config)
    folder = tiny.write_folder(tmp_path / "m", config, weights)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", _HOST, address, str(rank), str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env=environment,
        )
        for rank in range(2)
    ]
    found = [tuple(map(int, host.communicate(timeout=300)[0].split())) for host in hosts]
    whole = sum(value.nbytes for value in weights.values())
    norms = sum(value.nbytes for value in weights.values() if value.ndim == 1)
    assert found == [((whole - norms) // 2 + norms,) * 2] * 2


def test_weights_do_not_follow_a_file_that_is_overwritten(tmp_path: Path) -> None:
    config = tiny.config()
    weights = tiny.weights(config)
    folder = tiny.write_folder(tmp_path / "m", config, weights)
    params = load_params(open_checkpoint(folder), tiny.specs(config), make_mesh(1))
    jax.block_until_ready(params)
    file = folder / "model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(-4096, 2)
        opened.write(b"\xff" * 4096)
    for name, value in params.items():
        np.testing.assert_array_equal(np.asarray(value), weights[name])


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, tiny.BF16])
@pytest.mark.parametrize("act_type", ["FP32", "BF16", "FP16"])
def test_formats_are_cast_on_load(tmp_path: Path, stored: np.dtype | type, act_type: str) -> None:
    config = tiny.config()
    weights = tiny.weights(config, stored)
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", config, weights))
    specs = abstract_state(ModelConfig.from_hf(config), Precision.of(act_type, "cpu"))
    for name, value in load_params(checkpoint, specs, make_mesh(1)).items():
        assert value.dtype == specs[name].dtype
        np.testing.assert_array_equal(np.asarray(value), weights[name].astype(specs[name].dtype))


def test_one_error_lists_every_problem(tmp_path: Path) -> None:
    config = tiny.config()
    weights = tiny.weights(config)
    del weights["model.norm.weight"], weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.layers.2.mlp.up_proj.weight"] = np.zeros((3, 3), np.float32)
    weights["model.layers.0.mlp.down_proj.weight"] = np.zeros((96, 64), np.float32)
    weights["model.layers.0.mlp.gate_proj.weight"] = np.zeros((96, 64), np.int32)
    folder = tiny.write_folder(tmp_path / "m", config, weights)
    other = {"model.embed_tokens.weight": weights["model.embed_tokens.weight"]}
    twin = tiny.write_folder(tmp_path / "other", config, other)
    (twin / "model.safetensors").rename(folder / "more.safetensors")
    with pytest.raises(CheckpointError) as caught:
        check_tensors(open_checkpoint(folder), tiny.specs(config))
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[1:-1] == [
        "missing (2):",
        "model.layers.1.mlp.up_proj.weight",
        "model.norm.weight",
        "unexpected (1):",
        "model.layers.2.mlp.up_proj.weight",
        "misshapen (2):",
        "model.layers.0.mlp.down_proj.weight: expected [64, 96], found [96, 64]",
        "model.layers.0.mlp.gate_proj.weight: expected floating-point values, found int32",
        "doubled (1):",
        "model.embed_tokens.weight (in model.safetensors, more.safetensors)",
    ]


def test_a_tied_output_matrix_and_computed_buffers_are_accepted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny.config()
    weights = tiny.weights(config)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    weights[buffer] = np.ones(8, np.float32)
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", config, weights))
    with caplog.at_level("INFO"):
        params = load_params(checkpoint, tiny.specs(config), make_mesh(1))
    assert "lm_head.weight" not in params
    assert "lm_head.weight" in caplog.text
    assert buffer in caplog.text


def test_an_untied_model_needs_its_output_matrix(tmp_path: Path) -> None:
    config = tiny.config()
    checkpoint = open_checkpoint(tiny.write_folder(tmp_path / "m", config, tiny.weights(config)))
    untied = tiny.specs(tiny.config(tie_word_embeddings=False))
    with pytest.raises(CheckpointError, match=r"missing \(1\):\n    lm_head.weight"):
        check_tensors(checkpoint, untied)
