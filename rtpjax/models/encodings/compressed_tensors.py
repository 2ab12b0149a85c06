"""compressed-tensors, as llm-compressor writes it, and as `convert --quantize` does.

                      weight                                  weight_scale
    int-quantized     weight int8 [out, in]                   [out, 1]
    float-quantized   weight float8_e4m3fn [out, in]          [out, 1], [1], [] or one per block
    pack-quantized    weight_packed int32 [out, in * b / 32]  [out, groups]
                      weight_shape int64 [2]

Numbers of pack-quantized count from -2 ** (b - 1), and are packed from the lowest bits.

Source: https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from rtpjax.models.encodings.encoding import (
    Encoding,
    Options,
    StoredMatrix,
    StoredPart,
    block_scales,
    group_slice,
    in_format,
    layer_names,
    unpacked_bits,
)
from rtpjax.models.encodings.fp8 import FLOAT8
from rtpjax.models.quantization import EMBEDDING, HEAD, Quantization
from rtpjax.models.weight_formats import PLAIN, SCALE, WEIGHT, Fp8, Int4, Int8, WeightFormat

INT, FLOAT, PACKED, MIXED = (
    "int-quantized",
    "float-quantized",
    "pack-quantized",
    "mixed-precision",
)
# "naive-quantized" is what either was called before.
_FORMATS = (INT, FLOAT, PACKED, "naive-quantized")

_INT8, _INT32 = np.dtype(np.int8), np.dtype(np.int32)


class CompressedTensors(Encoding):
    """See Encoding."""

    method: ClassVar[str] = "compressed-tensors"

    def __init__(self, options: Options, config: Mapping[str, Any]):
        self._packed: dict[WeightFormat, bool] = {PLAIN: False}
        self._blocks: dict[WeightFormat, tuple[int, int]] = {}
        self._options = options
        common = options.values.get("format")
        groups = options.part("config_groups")
        self._groups = []
        for name in groups.values:
            group = groups.part(name)
            self._groups.append((group.names("targets"), self._format(group, common)))
        self._ignored = options.names("ignore")
        names = layer_names(config)
        layers = {self._format_of(name, "Linear") for name in names} or {PLAIN}
        if len(layers) > 1:
            found = ", ".join(sorted(map(repr, layers)))
            raise options.error("config_groups", found, "one format for all matrices of layers")
        self.quantization = Quantization(
            layers=layers.pop(),
            head=self._format_of(HEAD, "Linear"),
            embedding=self._format_of(EMBEDDING, "Embedding"),
        )

    def _format(self, group: Options, common: str | None) -> WeightFormat:
        """What a config group's weights become."""
        stored = group.one_of("format", _FORMATS, common)
        weights = group.part("weights")
        kind = weights.one_of("type", ("int", "float"), "int")
        bits = weights.one_of("num_bits", (4, 8) if kind == "int" else (8,))
        weights.one_of("symmetric", (True,), True)
        weights.one_of("dynamic", (False,), False)
        strategies = ("tensor", "channel", "group", "block")
        strategy = weights.one_of("strategy", strategies, "tensor")
        if bits == 4 and stored != PACKED:
            raise group.error("format", stored, f"{PACKED} for 4 bits")
        size = weights.group_size() if strategy == "group" else None
        if strategy == "block":
            block = weights.one_of("block_structure", ([128, 128],))
            size = block[1]
        if kind == "float":
            format: WeightFormat = Fp8(size)
        else:
            # "group" would need weight_g_idx; with the others groups are of neighbours.
            weights.one_of("actorder", ("weight", "static"), "weight")
            format = (Int4 if bits == 4 else Int8)(size)
        self._packed[format] = stored == PACKED
        if strategy == "block":
            self._blocks[format] = (128, 128)
        return format

    def _format_of(self, name: str, kind: str) -> WeightFormat:
        """A module's format: that of the first group with a target that names it or its class."""
        if _is_among(self._ignored, name, kind):
            return PLAIN
        formats = [f for targets, f in self._groups if _is_among(targets, name, kind)]
        return formats[0] if formats else PLAIN

    def parts(self, format: WeightFormat, matrix: StoredMatrix) -> Mapping[str, StoredPart]:
        """See Encoding."""
        assert isinstance(format, Int4 | Int8 | Fp8)
        out, num_inputs = matrix.shape
        parts = {SCALE: StoredPart(self._scale_shape(format, matrix))}
        if not self._packed[format]:
            dtype = FLOAT8 if isinstance(format, Fp8) else _INT8
            return {WEIGHT: StoredPart(matrix.shape, dtype), **parts}
        words = -(-num_inputs * format.bits // 32)
        return {"weight_packed": StoredPart((out, words), _INT32), **parts}

    def _scale_shape(self, format: Int4 | Int8 | Fp8, matrix: StoredMatrix) -> tuple[int, ...]:
        out, num_inputs = matrix.shape
        found = matrix.found.get(SCALE, ())
        if format in self._blocks:
            return (-(-out // self._blocks[format][0]), format.num_groups(num_inputs))
        if format.group is None and found in ((), (1,)):
            return found
        return (out, format.num_groups(num_inputs))

    def may_be_there(self) -> tuple[str, ...]:
        """See Encoding."""
        return ("weight_shape", "weight_zero_point", "input_scale")

    def read(
        self, format: WeightFormat, matrix: StoredMatrix, outputs: slice, inputs: slice
    ) -> dict[str, np.ndarray]:
        """See Encoding."""
        assert isinstance(format, Int4 | Int8 | Fp8)
        scales = self._scales(format, matrix, outputs, inputs)
        if not self._packed[format]:
            return in_format(format, matrix.read(WEIGHT, (outputs, inputs)), scales)
        per_word = 32 // format.bits
        words = slice(inputs.start // per_word, -(-inputs.stop // per_word))
        numbers = unpacked_bits(matrix.read("weight_packed", (outputs, words)), format.bits, 1)
        first = words.start * per_word
        numbers = numbers[:, inputs.start - first : inputs.stop - first]
        if isinstance(format, Int8):
            numbers = (numbers ^ 128).view(np.int8)
        return in_format(format, numbers, scales)

    def _scales(
        self, format: Int4 | Int8 | Fp8, matrix: StoredMatrix, outputs: slice, inputs: slice
    ) -> np.ndarray:
        """float32 `[out, groups]`."""
        groups = group_slice(format, matrix.shape[1], inputs)
        if format in self._blocks:
            block = self._blocks[format]
            rows = slice(outputs.start // block[0], -(-outputs.stop // block[0]))
            scales = matrix.read(SCALE, (rows, groups))
            return block_scales(scales, block, outputs, inputs.stop - inputs.start)
        if len(matrix.found[SCALE]) < 2:
            scale = matrix.read(SCALE, ()).astype(np.float32).reshape(1, 1)
            return np.repeat(scale, outputs.stop - outputs.start, axis=0)
        return matrix.read(SCALE, (outputs, groups)).astype(np.float32)


def _is_among(targets: Sequence[str], name: str, kind: str) -> bool:
    """Whether targets have a module's name or class, or an expression (re:...) that it begins."""
    return any(
        re.match(target[3:], name) if target.startswith("re:") else target in (name, kind)
        for target in targets
    )


def config_of(quantization: Quantization) -> dict[str, Any]:
    """The quantization_config of a checkpoint that write makes."""
    targets: dict[WeightFormat, list[str]] = {}
    for target, format in (
        ("Linear", quantization.layers),
        (f"re:.*{HEAD}$", quantization.head),
        ("Embedding", quantization.embedding),
    ):
        if format != PLAIN and target not in targets.setdefault(format, []):
            targets[format].append(target)
    # The first group that matches counts, and the output matrix is a Linear too.
    ordered = sorted(targets.items(), key=lambda item: "Linear" in item[1])
    groups = {f"group_{i}": _group(format, names) for i, (format, names) in enumerate(ordered)}
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": CompressedTensors.method,
        "format": formats.pop() if len(formats) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [HEAD] if quantization.head == PLAIN else [],
    }


def _group(format: WeightFormat, targets: list[str]) -> dict[str, Any]:
    assert isinstance(format, Int4 | Int8 | Fp8)
    kind = "float" if isinstance(format, Fp8) else "int"
    stored = {Int8: INT, Int4: PACKED, Fp8: FLOAT}[type(format)]
    weights = {
        "num_bits": format.bits,
        "type": kind,
        "symmetric": True,
        "dynamic": False,
        "strategy": "channel" if format.group is None else "group",
        "group_size": format.group,
    }
    # The CPU rounds activations row by row; readers that need it said (vLLM) do the same.
    rows = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    activations = rows if stored == INT else None
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": activations,
        "format": stored,
    }


def stored_parts(
    format: WeightFormat, shape: tuple[int, ...]
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and format of each tensor that stored_arrays makes of a matrix `[out, in]`."""
    assert isinstance(format, Int4 | Int8 | Fp8)
    out, num_inputs = shape
    scales = {SCALE: ((out, format.num_groups(num_inputs)), np.dtype(np.float32))}
    if not isinstance(format, Int4):
        return {WEIGHT: ((out, num_inputs), np.dtype(format.dtype)), **scales}
    return {
        "weight_packed": ((out, -(-num_inputs // 8)), _INT32),
        **scales,
        "weight_shape": ((2,), np.dtype(np.int64)),
    }


def stored_arrays(format: WeightFormat, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a matrix in a format is stored as, by the last part of the tensors' names."""
    if not isinstance(format, Int4):
        return dict(arrays)
    scales = arrays[SCALE]
    numbers = format.unpacked(arrays[WEIGHT].reshape(*scales.shape, -1)).reshape(len(scales), -1)
    pairs = np.ascontiguousarray(numbers[:, 0::2] | (numbers[:, 1::2] << 4))
    num_bytes = -(-pairs.shape[1] // 4) * 4
    padded = np.pad(pairs, ((0, 0), (0, num_bytes - pairs.shape[1])))
    return {
        "weight_packed": padded.view("<i4"),
        SCALE: scales,
        "weight_shape": np.asarray(numbers.shape, np.int64),
    }


ENCODING = CompressedTensors
