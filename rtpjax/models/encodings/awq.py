"""AWQ, as AutoAWQ's GEMM version writes it: 4 bits, packed along the outputs.

    qweight  int32 [in, out / 8]      outputs of a word, from its lowest bits: 0 2 4 6 1 3 5 7
    qzeros   int32 [groups, out / 8]  alike
    scales   float [groups, out]

Source: https://github.com/casper-hansen/AutoAWQ
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from rtpjax.models.encodings.encoding import (
    Encoding,
    Options,
    StoredMatrix,
    StoredPart,
    group_slice,
    in_format,
    refuse_skipped_layers,
    unpacked_bits,
)
from rtpjax.models.quantization import Quantization
from rtpjax.models.weight_formats import ZERO_POINT, Int4, WeightFormat

_INT32 = np.dtype(np.int32)
_PER_WORD = 8
# Where output k of a word is.
_PLACES = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])


class Awq(Encoding):
    """See Encoding."""

    method: ClassVar[str] = "awq"

    def __init__(self, options: Options, config: Mapping[str, Any]):
        # AutoAWQ writes its own names of these two; transformers' are `bits` and `group_size`.
        renamed = {"w_bit": "bits", "q_group_size": "group_size"}
        options.values = {renamed.get(k, k): v for k, v in options.values.items()}
        options.one_of("bits", (4,))
        options.one_of("zero_point", (True,), True)
        options.one_of("version", ("gemm", "GEMM"), "gemm")
        skipped = options.names("modules_to_not_convert")
        refuse_skipped_layers(
            options,
            "modules_to_not_convert",
            config,
            lambda name: any(part in name for part in skipped),
        )
        self.quantization = Quantization(Int4(options.group_size(), has_zeros=True))

    def parts(self, format: WeightFormat, matrix: StoredMatrix) -> Mapping[str, StoredPart]:
        """See Encoding."""
        assert isinstance(format, Int4)
        out, num_inputs = matrix.shape
        groups = format.num_groups(num_inputs)
        return {
            "qweight": StoredPart((num_inputs, out // _PER_WORD), _INT32),
            "qzeros": StoredPart((groups, out // _PER_WORD), _INT32),
            "scales": StoredPart((groups, out)),
        }

    def read(
        self, format: WeightFormat, matrix: StoredMatrix, outputs: slice, inputs: slice
    ) -> dict[str, np.ndarray]:
        """See Encoding."""
        assert isinstance(format, Int4)
        groups = group_slice(format, matrix.shape[1], inputs)
        numbers = _outputs_of(matrix, "qweight", inputs, outputs)
        zeros = _outputs_of(matrix, "qzeros", groups, outputs)
        scales = matrix.read("scales", (groups, outputs)).T
        return {**in_format(format, numbers, scales), ZERO_POINT: zeros}


def _outputs_of(matrix: StoredMatrix, part: str, rows: slice, outputs: slice) -> np.ndarray:
    """Numbers uint8 `[out, rows]` of a packed tensor."""
    words = slice(outputs.start // _PER_WORD, -(-outputs.stop // _PER_WORD))
    stored = unpacked_bits(matrix.read(part, (rows, words)), 4, 1)
    in_order = stored.reshape(stored.shape[0], -1, _PER_WORD)[:, :, _PLACES]
    first = words.start * _PER_WORD
    flat = in_order.reshape(stored.shape[0], -1)
    return flat[:, outputs.start - first : outputs.stop - first].T


ENCODING = Awq
