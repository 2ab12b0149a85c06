"""GPTQ, as AutoGPTQ and GPTQModel write it: 4 or 8 bits, packed along the inputs.

    qweight  int32 [in * bits / 32, out]     number of input i: word i * bits // 32, lowest first
    qzeros   int32 [groups, out * bits / 32] zero points less 1, or as they are in "gptq_v2"
    scales   float [groups, out]
    g_idx    int32 [in]                      the group of each input; with desc_act in any order

Source: https://github.com/ModelCloud/GPTQModel
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from rtpjax.errors import CheckpointError
from rtpjax.models.encodings.encoding import (
    Encoding,
    Options,
    StoredMatrix,
    StoredPart,
    group_slice,
    in_format,
    unpacked_bits,
)
from rtpjax.models.quantization import Quantization
from rtpjax.models.weight_formats import INPUT_ORDER, PLAIN, ZERO_POINT, Int4, Int8, WeightFormat

_INT32 = np.dtype(np.int32)


class Gptq(Encoding):
    """See Encoding."""

    method: ClassVar[str] = "gptq"

    def __init__(self, options: Options, config: Mapping[str, Any]):
        self.bits = options.one_of("bits", (4, 8))
        is_symmetric = options.one_of("sym", (True, False), True)
        is_reordered = options.one_of("desc_act", (True, False), False)
        version = options.one_of("checkpoint_format", ("gptq", "gptq_v2"), "gptq")
        if options.values.get("dynamic"):
            raise options.error("dynamic", options.values["dynamic"], "one format for all layers")
        self.zero_offset = 0 if version == "gptq_v2" else 1
        group = options.group_size()
        kind = Int4 if self.bits == 4 else Int8
        format = kind(group, not is_symmetric, is_reordered and group is not None)
        has_head = options.one_of("lm_head", (True, False), False)
        self.quantization = Quantization(format, format if has_head else PLAIN)

    def parts(self, format: WeightFormat, matrix: StoredMatrix) -> Mapping[str, StoredPart]:
        """See Encoding."""
        assert isinstance(format, Int4 | Int8)
        out, num_inputs = matrix.shape
        per_word, groups = 32 // self.bits, format.num_groups(num_inputs)
        order = {"g_idx": StoredPart((num_inputs,), _INT32)} if format.has_order else {}
        return {
            "qweight": StoredPart((num_inputs // per_word, out), _INT32),
            "qzeros": StoredPart((groups, out // per_word), _INT32),
            "scales": StoredPart((groups, out)),
            **order,
        }

    def may_be_there(self) -> tuple[str, ...]:
        """See Encoding: without desc_act the groups follow from their size."""
        return ("g_idx",)

    def read(
        self, format: WeightFormat, matrix: StoredMatrix, outputs: slice, inputs: slice
    ) -> dict[str, np.ndarray]:
        """See Encoding."""
        assert isinstance(format, Int4 | Int8)
        per_word, num_inputs = 32 // self.bits, matrix.shape[1]
        order = _input_order(format, matrix) if format.has_order else None
        if order is not None:
            inputs = slice(0, num_inputs)
        groups = group_slice(format, num_inputs, inputs)
        words = slice(inputs.start // per_word, inputs.stop // per_word)
        numbers = unpacked_bits(matrix.read("qweight", (words, outputs)), self.bits, 0).T
        if order is not None:
            numbers = numbers[:, order]
        scales = matrix.read("scales", (groups, outputs)).T
        arrays = in_format(format, self._numbers(format, numbers), scales)
        zeros = self._zeros(matrix, outputs, groups)
        if format.has_zeros:
            arrays[ZERO_POINT] = zeros.astype(format.zeros_dtype)
        elif (zeros != format.zero).any():
            raise CheckpointError(
                f"{matrix.name}.qzeros: has zero points, but quantization_config.sym is true. "
                "Set it to false in config.json."
            )
        return arrays if order is None else {**arrays, INPUT_ORDER: order}

    def _numbers(self, format: Int4 | Int8, stored: np.ndarray) -> np.ndarray:
        # Int8 counts from -128.
        return stored if isinstance(format, Int4) else (stored ^ 128).view(np.int8)

    def _zeros(self, matrix: StoredMatrix, outputs: slice, groups: slice) -> np.ndarray:
        """Zero points int32 `[out, groups]`, as the format counts."""
        per_word = 32 // self.bits
        words = slice(outputs.start // per_word, -(-outputs.stop // per_word))
        stored = unpacked_bits(matrix.read("qzeros", (groups, words)), self.bits, 1)
        first = words.start * per_word
        own = stored[:, outputs.start - first : outputs.stop - first].T
        return own.astype(np.int32) + self.zero_offset - (0 if self.bits == 4 else 128)


def _input_order(format: Int4 | Int8, matrix: StoredMatrix) -> np.ndarray:
    """Inputs by group, int32 `[in]`."""
    groups = matrix.read("g_idx", (slice(None),))
    order = np.argsort(groups, kind="stable").astype(np.int32)
    assert format.group is not None
    if (groups[order] != np.arange(matrix.shape[1]) // format.group).any():
        raise CheckpointError(
            f"{matrix.name}.g_idx: expected {format.group} inputs in each of its groups; "
            "the checkpoint is damaged, or group_size in its config.json is wrong."
        )
    return order


ENCODING = Gptq
