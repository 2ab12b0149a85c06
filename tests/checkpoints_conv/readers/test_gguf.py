from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints_conv.readers import open_checkpoint
from checkpoints_conv.readers.gguf_config import llama3_divisors
from rtpjax.checkpoint import check_tensors
from rtpjax.errors import CheckpointError
from rtpjax.gguf_file import read_gguf
from rtpjax.models import ModelConfig
from tests.checkpoints_conv import tiny
from tests.examples import num_examples

Type = gguf.GGMLQuantizationType

# Largest error that the format may make on values of a standard normal distribution.
TOLERANCE = {Type.F32: 0, Type.F16: 2e-3, Type.BF16: 2e-2, Type.Q8_0: 2e-2}
TOLERANCE |= {Type.Q5_0: 0.2, Type.Q5_1: 0.15, Type.Q4_0: 0.5, Type.Q4_1: 0.3}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_a_gguf_is_the_checkpoint_it_was_made_of(
    tmp_path: Path, family: str, is_tied: bool
) -> None:
    config = tiny.config(family, tie_word_embeddings=is_tied)
    weights = tiny.weights(config)
    checkpoint = open_checkpoint(tiny.write_gguf(tmp_path / "m.gguf", config, weights))
    ours, theirs = ModelConfig.from_hf(checkpoint.config), ModelConfig.from_hf(config)
    assert ours.layer_ropes == theirs.layer_ropes
    for key in config:
        assert checkpoint.config[key] == config[key], key
    check_tensors(checkpoint, tiny.specs(checkpoint.config))
    for name, value in weights.items():
        np.testing.assert_array_equal(checkpoint.read(name), value)
    q_proj = "model.layers.1.self_attn.q_proj.weight"
    index = (slice(9, 41), slice(3, 20))
    np.testing.assert_array_equal(checkpoint.read(q_proj, index), weights[q_proj][index])


def test_biases_of_llama_are_permuted_too(tmp_path: Path) -> None:
    config = tiny.config(attention_bias=True)
    weights = tiny.weights(config)
    checkpoint = open_checkpoint(tiny.write_gguf(tmp_path / "m.gguf", config, weights))
    assert checkpoint.config["attention_bias"] is True
    name = "model.layers.0.self_attn.k_proj.bias"
    np.testing.assert_array_equal(checkpoint.read(name), weights[name])
    np.testing.assert_array_equal(checkpoint.read(name, (slice(3, 9),)), weights[name][3:9])


@pytest.mark.parametrize("quantization", TOLERANCE)
def test_every_format_that_the_library_can_write(tmp_path: Path, quantization: Type) -> None:
    config = tiny.config()
    weights = tiny.weights(config)
    path = tiny.write_gguf(tmp_path / "m.gguf", config, weights, quantization=quantization)
    checkpoint = open_checkpoint(path)
    for name, value in weights.items():
        read = checkpoint.read(name).astype(np.float32)
        assert np.abs(read - value).max() <= TOLERANCE[quantization], name
        if value.ndim == 2:
            index = (slice(5, 30), slice(1, 50))
            part = checkpoint.read(name, index).astype(np.float32)
            np.testing.assert_array_equal(part, read[index])


@pytest.mark.parametrize("kind", [Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K])
def test_k_formats_are_dequantized_row_by_row(tmp_path: Path, kind: Type) -> None:
    rng = np.random.default_rng(1)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 60, (6, 2 * block_bytes), dtype=np.uint8)
    config = tiny.config()
    writer_extra = {"blk.0.extra.weight": np.zeros((1, 1), np.float32)}
    path = tiny.write_gguf(tmp_path / "a.gguf", config, tiny.weights(config), extra=writer_extra)
    checkpoint = open_checkpoint(path)
    assert "blk.0.extra.weight" in checkpoint.tensors
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    for key, field in read_gguf(path).metadata.items():
        if key.startswith("llama.") and isinstance(field, int):
            writer.add_uint32(key, field)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "b.gguf")
    name = "model.embed_tokens.weight"
    assert checkpoint.tensors[name].shape == (6, 2 * block_size)
    expected = gguf.quants.dequantize(raw, kind)
    np.testing.assert_array_equal(checkpoint.read(name), expected)
    np.testing.assert_array_equal(
        checkpoint.read(name, (slice(2, 4), slice(7, 300))), expected[2:4, 7:300]
    )


def test_llama3_rope_is_recovered_from_its_table(tmp_path: Path) -> None:
    config = tiny.config(rope_theta=500000.0)
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    table = llama3_divisors(500000.0, config["head_dim"], scaling).astype(np.float32)
    weights = tiny.weights(config)
    path = tiny.write_gguf(tmp_path / "m.gguf", config, weights, extra={"rope_freqs.weight": table})
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["rope_scaling"] == scaling
    check_tensors(checkpoint, tiny.specs(checkpoint.config))
    table[3] *= 1.5
    path = tiny.write_gguf(tmp_path / "n.gguf", config, weights, extra={"rope_freqs.weight": table})
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight is not a table"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 32,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_rope_scaling(
    tmp_path: Path, metadata: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    config = tiny.config()
    weights = tiny.weights(config)
    path = tiny.write_gguf(tmp_path / "m.gguf", config, weights, metadata=metadata)
    read = open_checkpoint(path).config
    assert read["rope_scaling"] == expected
    ModelConfig.from_hf(read)


def test_a_window_makes_it_mistral(tmp_path: Path) -> None:
    config = tiny.config()
    weights = tiny.weights(config)
    path = tiny.write_gguf(
        tmp_path / "m.gguf", config, weights, metadata={"llama.attention.sliding_window": 32}
    )
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["architectures"] == ["MistralForCausalLM"]
    assert ModelConfig.from_hf(checkpoint.config).sliding_window == 32
    for name, value in weights.items():
        np.testing.assert_array_equal(checkpoint.read(name), value)


def test_header_is_what_the_gguf_library_reads(tmp_path: Path) -> None:
    config = tiny.config()
    path = tiny.write_gguf(
        tmp_path / "m.gguf", config, tiny.weights(config), quantization=Type.Q4_1
    )
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.metadata == fields
    assert [(t.name, t.type, t.offset, t.num_bytes) for t in ours.tensors] == [
        (t.name, t.tensor_type, t.data_offset, t.n_bytes) for t in theirs.tensors
    ]


@settings(max_examples=num_examples(60))
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_named_with_both_sizes(
    tmp_path_factory: pytest.TempPathFactory, fraction: float
) -> None:
    config = tiny.config()
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    tiny.write_gguf(path, config, tiny.weights(config))
    tensors = read_gguf(path).tensors
    size = int(max(t.offset + t.num_bytes for t in tensors) * fraction)
    with path.open("r+b") as opened:
        opened.truncate(size)
    with pytest.raises(CheckpointError, match=r"m\.gguf: truncated") as caught:
        open_checkpoint(path)
    numbers = [int(n) for n in re.findall(r"\d+", str(caught.value).split("truncated", 1)[1])]
    assert size in numbers
    assert max(numbers) > size


@settings(max_examples=num_examples(80))
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_damaged_header_is_an_error_of_ours_or_none(
    tmp_path_factory: pytest.TempPathFactory, position: float, value: int
) -> None:
    config = tiny.config()
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    tiny.write_gguf(path, config, tiny.weights(config))
    header_bytes = read_gguf(path).tensors[0].offset
    content = bytearray(path.read_bytes())
    content[int(position * header_bytes)] = value
    path.write_bytes(content)
    try:
        read_gguf(path)
    except CheckpointError as error:
        assert "m.gguf" in str(error)


def test_what_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    config = tiny.config()
    weights = tiny.weights(config)
    parts = tiny.write_gguf(tmp_path / "p.gguf", config, weights, metadata={"split.count": 3})
    with pytest.raises(CheckpointError, match="--merge"):
        open_checkpoint(parts)
    (tmp_path / "z.gguf").write_bytes(b"PK" * 40)
    with pytest.raises(CheckpointError, match="not a GGUF"):
        open_checkpoint(tmp_path / "z.gguf")
    with pytest.raises(CheckpointError, match=r"2 \.gguf files"):
        open_checkpoint(tmp_path)


def test_a_folder_with_one_gguf(tmp_path: Path) -> None:
    config = tiny.config()
    tiny.write_gguf(tmp_path / "m.gguf", config, tiny.weights(config))
    assert open_checkpoint(tmp_path).format == "gguf"


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
def test_gemma_has_its_norms_and_what_the_file_does_not_say(tmp_path: Path, arch: str) -> None:
    """Names are gguf's own; norms are stored with 1 added, as llama.cpp's converter does."""
    is_third = arch == "gemma3"
    config = {key: value for key, value in tiny.config().items() if key != "hidden_act"} | {
        "architectures": ["Gemma3ForCausalLM" if is_third else "Gemma2ForCausalLM"],
        "model_type": "gemma3_text" if is_third else arch,
        "num_hidden_layers": 3,
        "rope_theta": 1e6 if is_third else 1e4,
        "sliding_window": 32,
        "query_pre_attn_scalar": 16,
    }
    weights = tiny.weights(config)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_sliding_window(config["sliding_window"])
    if not is_third:
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    tiny.add_tokenizer(writer, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config["num_hidden_layers"])
    for name, value in weights.items():
        stored = names.get_name(name.removesuffix(".weight"))
        writer.add_tensor(f"{stored}.weight", value + np.float32("norm" in name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert ModelConfig.from_hf(checkpoint.config) == dataclasses.replace(
        ModelConfig.from_hf(config),
        bos_token_id=1,
        eos_token_ids=(2,),
        torch_dtype="bfloat16",
    )
    check_tensors(checkpoint, tiny.specs(checkpoint.config))
    for name, value in weights.items():
        np.testing.assert_allclose(checkpoint.read(name), value, atol=1e-6)
