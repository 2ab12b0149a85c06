"""Makes the config.json of Hugging Face from a GGUF file's metadata.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#standardized-key-value-pairs
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rtpjax.errors import CheckpointError
from rtpjax.gguf_file import GgufFile

ROPE_FREQS = "rope_freqs.weight"

# GGUF's general.architecture -> model_type and architecture of Hugging Face. Mistral is stored as
# "llama"; only its sliding window tells them apart, and without one they are the same model.
_ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
GEMMA_TYPES = ("gemma2", "gemma3_text")
# Layers of the two that scale scores by the width of a head as if heads filled the hidden size:
# Gemma 2 and 3 of 27B. All others do by head_dim; GGUF does not say, and llama.cpp goes by layers.
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}
_MISTRAL = ("mistral", "MistralForCausalLM")

# (factor's name in config.json, key under rope.scaling in GGUF)
_YARN_OPTIONS = (
    ("attention_factor", "yarn_attn_factor"),
    ("beta_fast", "yarn_beta_fast"),
    ("beta_slow", "yarn_beta_slow"),
)


def config_from_gguf(file: GgufFile) -> dict[str, Any]:
    """The dict of a config.json that describes the same model.

    Raises:
        CheckpointError: The architecture is not supported, a needed key is missing, or the rope
            scaling has no counterpart.
    """
    arch = file.metadata.get("general.architecture")
    if arch not in _ARCHITECTURES:
        raise CheckpointError(
            f"{file.path}: GGUF architecture {arch!r} is not supported; "
            f"supported are {', '.join(_ARCHITECTURES)} (mistral is stored as llama)."
        )
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    window = file.metadata.get(f"{arch}.attention.sliding_window")
    is_mistral = arch == "llama" and window is not None
    model_type, architecture = _MISTRAL if is_mistral else _ARCHITECTURES[arch]
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in shapes,
        "vocab_size": _vocab_size(file, shapes),
        "torch_dtype": "bfloat16",
        **_sizes(file, arch),
        **_token_ids(file),
    }
    config |= _rope(file, arch, config)
    if arch == "llama" and not is_mistral:
        config["attention_bias"] = "blk.0.attn_q.bias" in shapes
        config["mlp_bias"] = "blk.0.ffn_up.bias" in shapes
    if model_type in GEMMA_TYPES:
        del config["hidden_act"]  # Hugging Face has hidden_activation for Gemma
        config |= _gemma(file, arch, config)
    elif is_mistral:
        config["sliding_window"] = window
    elif window is not None:
        # Qwen's windows start at a layer that GGUF does not name.
        raise CheckpointError(
            f"{file.path}: a sliding window with {arch} cannot be read from GGUF."
        )
    return config


def _gemma(file: GgufFile, arch: str, config: dict[str, Any]) -> dict[str, Any]:
    """What Gemma has beside; the pattern of windows and the local rope are those of the family."""
    is_27b = config["num_hidden_layers"] == _GEMMA_27B_LAYERS[arch]
    caps = {
        name: _shortest(value)
        for name, key in (
            ("attn_logit_softcapping", f"{arch}.attn_logit_softcapping"),
            ("final_logit_softcapping", f"{arch}.final_logit_softcapping"),
        )
        if (value := file.metadata.get(key)) is not None
    }
    width = config["hidden_size"] // config["num_attention_heads"]
    return caps | {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": _need(file, f"{arch}.attention.sliding_window"),
        "query_pre_attn_scalar": width if is_27b else config["head_dim"],
    }


def _sizes(file: GgufFile, arch: str) -> dict[str, Any]:
    hidden_size = _need(file, f"{arch}.embedding_length")
    num_heads = _need(file, f"{arch}.attention.head_count")
    metadata = file.metadata
    rope_dim = metadata.get(f"{arch}.rope.dimension_count")
    head_dim = metadata.get(f"{arch}.attention.key_length", rope_dim or hidden_size // num_heads)
    if metadata.get(f"{arch}.attention.value_length", head_dim) != head_dim:
        raise CheckpointError(f"{file.path}: keys and values of different sizes are not supported.")
    if (rope_dim or head_dim) != head_dim:
        raise CheckpointError(
            f"{file.path}: rope over {rope_dim} of a head's {head_dim} features is not supported."
        )
    eps = _need(file, f"{arch}.attention.layer_norm_rms_epsilon")
    return {
        "hidden_size": hidden_size,
        "intermediate_size": _need(file, f"{arch}.feed_forward_length"),
        "num_hidden_layers": _need(file, f"{arch}.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": metadata.get(f"{arch}.attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": _need(file, f"{arch}.context_length"),
        "rms_norm_eps": _shortest(eps),
    }


def _need(file: GgufFile, key: str) -> Any:
    value = file.metadata.get(key)
    if value is None or isinstance(value, list):
        raise CheckpointError(f"{file.path}: metadata {key} should be one number, found {value!r}.")
    return value


def _shortest(value: float) -> float:
    """The decimal number that was meant: 9.999999747378752e-06, stored as float32, is 1e-05."""
    return float(str(np.float32(value)))


def _vocab_size(file: GgufFile, shapes: dict[str, tuple[int, ...]]) -> int:
    if "token_embd.weight" not in shapes:
        raise CheckpointError(f"{file.path}: there is no token_embd.weight.")
    return shapes["token_embd.weight"][0]


def _token_ids(file: GgufFile) -> dict[str, Any]:
    """Beginning, end and padding; a chat's end of turn is an end too."""
    get = file.metadata.get
    ends = [get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    eos_ids = list(dict.fromkeys(token_id for token_id in ends if token_id is not None))
    ids = {
        "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids or None,
        "pad_token_id": get("tokenizer.ggml.padding_token_id"),
    }
    return {key: value for key, value in ids.items() if value is not None}


def _rope(file: GgufFile, arch: str, config: dict[str, Any]) -> dict[str, Any]:
    get, prefix = file.metadata.get, f"{arch}.rope.scaling"
    theta = _shortest(get(f"{arch}.rope.freq_base", 10000.0))
    kind = get(f"{prefix}.type", "none")
    legacy_factor = get(f"{arch}.rope.scale_linear", 1.0)
    scaling: dict[str, Any] | None = None
    if any(tensor.name == ROPE_FREQS for tensor in file.tensors):
        scaling = _llama3_scaling(file, theta, config)
    elif kind == "linear" or (kind == "none" and legacy_factor != 1.0):
        factor = get(f"{prefix}.factor", legacy_factor)
        scaling = {"rope_type": "linear", "factor": _shortest(factor)}
    elif kind == "yarn":
        scaling = {"rope_type": "yarn", "factor": _shortest(_need(file, f"{prefix}.factor"))}
        if (original := get(f"{prefix}.original_context_length")) is not None:
            scaling["original_max_position_embeddings"] = original
        for name, key in _YARN_OPTIONS:
            if (value := get(f"{prefix}.{key}")) is not None:
                scaling[name] = _shortest(value)
    elif kind != "none":
        raise CheckpointError(f"{file.path}: rope scaling {kind!r} is not supported.")
    return {"rope_theta": theta, "rope_scaling": scaling}


def _llama3_scaling(file: GgufFile, theta: float, config: dict[str, Any]) -> dict[str, Any] | None:
    """The parameters behind the table of divisors that GGUF stores for Llama 3.1 and later.

    All such models were trained with low and high factors 1 and 4 on 8,192 positions; that the
    stored table follows from them is checked, not assumed.
    """
    tensor = next(tensor for tensor in file.tensors if tensor.name == ROPE_FREQS)
    raw = file.data[tensor.offset : tensor.offset + tensor.num_bytes]
    stored = raw.view(np.float32)
    if np.all(stored == 1.0):
        return None
    scaling = {
        "rope_type": "llama3",
        "factor": _shortest(float(stored.max())),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = llama3_divisors(theta, config["head_dim"], scaling)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-4):
        raise CheckpointError(
            f"{file.path}: {ROPE_FREQS} is not a table of Llama 3's rope scaling; nothing else can "
            "be read from GGUF. Use the Hugging Face checkpoint of this model."
        )
    return scaling


def llama3_divisors(theta: float, head_dim: int, scaling: dict[str, Any]) -> np.ndarray:
    """What each rope frequency is divided by.

    Args:
        theta: Rope base.
        head_dim: H.
        scaling: rope_scaling of config.json, of type llama3.

    Returns:
        float64 `[H / 2]`.

    Source: https://github.com/meta-llama/llama-models/blob/main/models/llama3/model.py
    """
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    positions = scaling["original_max_position_embeddings"]
    # 0 for the longest waves, which are slowed by factor; 1 for the shortest, which stay.
    blend = np.clip((positions / wavelengths - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - blend) / scaling["factor"] + blend)
