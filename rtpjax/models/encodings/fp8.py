"""fp8, as DeepSeek, Qwen and transformers write it: one scale per block of 128 x 128 or per matrix.

    weight            float8_e4m3fn [out, in]
    weight_scale_inv  float [ceil(out / 128), ceil(in / 128)]; what a block is multiplied with
    weight_scale      float [] or [1]; what the matrix is multiplied with, also as weight_scale_inv
    input_scale       of static activation scales: not needed, activations stay as they are

Source: https://huggingface.co/docs/transformers/quantization/finegrained_fp8
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from rtpjax.models.encodings.encoding import (
    Encoding,
    Options,
    StoredMatrix,
    StoredPart,
    block_scales,
    group_slice,
    refuse_skipped_layers,
)
from rtpjax.models.quantization import Quantization
from rtpjax.models.weight_formats import SCALE, WEIGHT, Fp8, WeightFormat

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


class Fp8Blocks(Encoding):
    """See Encoding."""

    method: ClassVar[str] = "fp8"

    def __init__(self, options: Options, config: Mapping[str, Any]):
        options.one_of("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
        options.one_of("activation_scheme", ("dynamic", "static"), "dynamic")
        block = options.one_of("weight_block_size", ([128, 128], None))
        self.block = None if block is None else (block[0], block[1])
        for key in ("modules_to_not_convert", "ignored_layers"):
            skipped = options.names(key)
            refuse_skipped_layers(
                options, key, config, lambda name, skipped=skipped: _is_named(name, skipped)
            )
        self.quantization = Quantization(Fp8(None if self.block is None else self.block[1]))

    def parts(self, format: WeightFormat, matrix: StoredMatrix) -> Mapping[str, StoredPart]:
        """See Encoding."""
        weight = {WEIGHT: StoredPart(matrix.shape, FLOAT8)}
        if self.block is not None:
            assert isinstance(format, Fp8)
            blocks = -(-matrix.shape[0] // self.block[0]), format.num_groups(matrix.shape[1])
            return weight | {"weight_scale_inv": StoredPart(blocks)}
        name = _scale_name(matrix)
        shape = matrix.found.get(name)
        return weight | {name: StoredPart(shape if shape in ((), (1,)) else ())}

    def may_be_there(self) -> tuple[str, ...]:
        """See Encoding."""
        return ("input_scale", "activation_scale")

    def read(
        self, format: WeightFormat, matrix: StoredMatrix, outputs: slice, inputs: slice
    ) -> dict[str, np.ndarray]:
        """See Encoding."""
        assert isinstance(format, Fp8)
        weight = matrix.read(WEIGHT, (outputs, inputs))
        if self.block is None:
            scale = np.float32(matrix.read(_scale_name(matrix), ()).reshape(()))
            return {WEIGHT: weight, SCALE: np.full((len(weight), 1), scale, np.float32)}
        size = self.block[0]
        rows = slice(outputs.start // size, -(-outputs.stop // size))
        groups = group_slice(format, matrix.shape[1], inputs)
        scales = matrix.read("weight_scale_inv", (rows, groups))
        num_inputs = inputs.stop - inputs.start
        return {WEIGHT: weight, SCALE: block_scales(scales, self.block, outputs, num_inputs)}


def _is_named(name: str, skipped: tuple[str, ...]) -> bool:
    """Whether a list has the module or one that it is in (the lists name norms beside it too)."""
    return any(name == part or f".{name}.".find(f".{part}.") >= 0 for part in skipped)


def _scale_name(matrix: StoredMatrix) -> str:
    return "weight_scale_inv" if "weight_scale_inv" in matrix.found else "weight_scale"


ENCODING = Fp8Blocks
