"""Tiny checkpoints with random weights, in every format that is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from checkpoints_conv.readers.gguf import hf_name
from checkpoints_conv.writers import Source, write_safetensors
from rtpjax.checkpoint import TensorInfo
from rtpjax.models import ModelConfig, ParamSpec, Precision, abstract_state

BF16 = np.dtype(ml_dtypes.bfloat16)

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    """A config.json of two layers."""
    return {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 40,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        **changes,
    }


def specs(hf_config: Mapping[str, Any]) -> Mapping[str, ParamSpec]:
    """What the model of this config declares, in float32."""
    return abstract_state(ModelConfig.from_hf(hf_config), Precision.of("FP32", "cpu"))


def weights(
    hf_config: Mapping[str, Any], dtype: np.dtype | type = np.float32
) -> dict[str, np.ndarray]:
    """Random values for every parameter."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(spec.shape, dtype=np.float32).astype(dtype)
        for name, spec in specs(hf_config).items()
    }


def write_folder(
    folder: Path,
    hf_config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    max_bytes: int = 10**9,
) -> Path:
    """A folder in Hugging Face layout, in several files if max_bytes is small."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config))
    infos = [TensorInfo(name, value.shape, value.dtype) for name, value in tensors.items()]
    write_safetensors(folder, Source(infos, lambda name: tensors[name], lambda _: None), max_bytes)
    return folder


def write_gguf(
    path: Path,
    hf_config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: Mapping[str, float | int | str] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """What llama.cpp's converter makes of these weights, with its order of query and key rows."""
    arch = hf_config["model_type"]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(hf_config["max_position_embeddings"])
    writer.add_embedding_length(hf_config["hidden_size"])
    writer.add_block_count(hf_config["num_hidden_layers"])
    writer.add_feed_forward_length(hf_config["intermediate_size"])
    writer.add_head_count(hf_config["num_attention_heads"])
    writer.add_head_count_kv(hf_config["num_key_value_heads"])
    writer.add_key_length(hf_config["head_dim"])
    writer.add_value_length(hf_config["head_dim"])
    writer.add_layer_norm_rms_eps(hf_config["rms_norm_eps"])
    writer.add_rope_freq_base(hf_config["rope_theta"])
    add_tokenizer(writer, hf_config["vocab_size"])
    for key, value in (metadata or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    for name, value in _gguf_tensors(hf_config, tensors):
        if value.ndim == 1 or quantization == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
        else:
            encoded = gguf.quants.quantize(value, quantization)
            writer.add_tensor(name, encoded, raw_dtype=quantization)
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(
    writer: gguf.GGUFWriter,
    vocab_size: int,
    pre: str = "smollm",
    chat_template: Any = "{{ messages[0].content }}",
) -> None:
    """A byte-level vocabulary: three special tokens and some bytes; no merges but one."""
    letters = [chr(ord("a") + i) for i in range(26)]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "Ġ", "1", "2", "ĠĠ"]
    tokens += [f"<unused{i}>" for i in range(vocab_size - len(tokens))]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([control] * 3 + [normal] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(chat_template)


def _gguf_tensors(
    hf_config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> list[tuple[str, np.ndarray]]:
    layers = range(hf_config["num_hidden_layers"])
    stems = "attn_norm attn_q attn_k attn_v attn_q_norm attn_k_norm attn_output ffn_norm ffn_gate"
    stems += " ffn_up ffn_down"
    names = [f"blk.{i}.{stem}" for i in layers for stem in stems.split()]
    names += ["token_embd", "output_norm", "output"]
    candidates = [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    found = {name: tensors[hf_name(name)] for name in candidates if hf_name(name) in tensors}
    assert len(found) == len(tensors)
    if hf_config["model_type"] == "llama":
        for name in found:
            if ".attn_q." in name:
                found[name] = permute(found[name], hf_config["num_attention_heads"])
            elif ".attn_k." in name:
                found[name] = permute(found[name], hf_config["num_key_value_heads"])
    return list(found.items())


def permute(values: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's order of rows.

    Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py (LlamaModel)
    """
    halves = values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
