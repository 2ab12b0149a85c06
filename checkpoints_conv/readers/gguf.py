"""Reads GGUF files under Hugging Face names, dequantizing each tensor when it is asked for.

Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py (which this undoes)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, quants

from checkpoints_conv.readers.gguf_config import GEMMA_TYPES, ROPE_FREQS, config_from_gguf
from rtpjax.checkpoint import TensorInfo
from rtpjax.errors import CheckpointError
from rtpjax.gguf_file import GgufTensor, read_gguf

_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# Gemma has norms before and after each block.
_GEMMA_LAYER_NAMES = _LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")

# Formats that need no dequantizing; all others become float32.
_PLAIN: dict[GGMLQuantizationType, np.dtype] = {
    GGMLQuantizationType.F64: np.dtype(np.float64),
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}


class GgufCheckpoint:
    """A .gguf file; see rtpjax.checkpoint.Checkpoint.

    Attributes:
        is_quantized: Whether any tensor is stored in a quantized format.
    """

    format = "gguf"

    def __init__(self, path: Path):
        """Reads the header.

        Raises:
            CheckpointError: The file is damaged, or its architecture or rope scaling has no
                counterpart among the models.
        """
        file = read_gguf(path)
        self.path = path
        self.files = (path,)
        self.config = config_from_gguf(file)
        self._data = file.data
        self._is_gemma = self.config["model_type"] in GEMMA_TYPES
        layer_names = _GEMMA_LAYER_NAMES if self._is_gemma else _LAYER_NAMES
        self._sources: dict[str, GgufTensor] = {}
        doubled: dict[str, tuple[str, ...]] = {}
        for tensor in file.tensors:
            name = hf_name(tensor.name, layer_names)
            if name in self._sources:
                doubled[name] = (*doubled.get(name, (self._sources[name].name,)), tensor.name)
            if tensor.name != ROPE_FREQS:
                self._sources[name] = tensor
        self.doubled: Mapping[str, tuple[str, ...]] = doubled
        self.is_quantized = any(tensor.type not in _PLAIN for tensor in self._sources.values())
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, tensor.shape, _PLAIN.get(tensor.type, np.dtype(np.float32)))
            for name, tensor in self._sources.items()
        }

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """The tensor or a slice of it, in its stored format, or in float32 if that is quantized.

        Only the rows that index asks for are dequantized.
        """
        tensor = self._sources[name]
        index = index or (slice(None),) * len(tensor.shape)
        raw = self._data[tensor.offset : tensor.offset + tensor.num_bytes]
        order = self._row_order(name, tensor.shape)
        if len(tensor.shape) < 2:
            values = _decode(raw, tensor).reshape(tensor.shape)
            if self._is_gemma and name.endswith("norm.weight"):
                values = values - 1  # llama.cpp stores the factor, Hugging Face the factor less 1
            return values[index] if order is None else values[order][index]
        rows = raw.reshape(tensor.shape[0], -1)
        picked = rows[index[0]] if order is None else rows[order[index[0]]]
        return _decode(picked, tensor).reshape(-1, *tensor.shape[1:])[(slice(None), *index[1:])]

    def _row_order(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """For each row its row in the file, None if they stand as Hugging Face has them.

        llama.cpp rotates neighbours and Hugging Face halves, so for its "llama" architecture it
        stores the two halves of each query and key head interleaved:

            Hugging Face   0  1  2  3 | 4  5  6  7        file   0  4  1  5  2  6  3  7
        """
        projection = re.search(r"\.([qk])_proj\.(weight|bias)$", name)
        if projection is None or self.config["model_type"] not in ("llama", "mistral"):
            return None
        key = "num_attention_heads" if projection[1] == "q" else "num_key_value_heads"
        in_file = np.arange(shape[0]).reshape(self.config[key], -1, 2)
        return in_file.swapaxes(1, 2).reshape(-1)


def hf_name(name: str, layer_names: Mapping[str, str] = _LAYER_NAMES) -> str:
    """The Hugging Face name of a GGUF tensor; one without a counterpart keeps its name."""
    layer = _LAYER.fullmatch(name)
    if layer is not None and layer[2] in layer_names:
        return f"model.layers.{layer[1]}.{layer_names[layer[2]]}.{layer[3]}"
    stem, _, kind = name.rpartition(".")
    return f"{_NAMES[stem]}.{kind}" if stem in _NAMES else name


def _decode(raw: np.ndarray, tensor: GgufTensor) -> np.ndarray:
    """Encoded bytes `[..., row bytes]` -> values `[..., row]`."""
    if tensor.type in _PLAIN:
        return raw.view(_PLAIN[tensor.type])
    try:
        return quants.dequantize(raw, tensor.type)
    except NotImplementedError as error:
        raise CheckpointError(
            f"{tensor.name}: values in {tensor.type.name} cannot be read. Quantize the model to "
            "one of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, or a K format."
        ) from error
