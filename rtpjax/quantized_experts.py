"""Experts of a quantized checkpoint as plain numbers: experts are computed from plain weights.

    in the file (fp8, as DeepSeek writes it)                    in the view
    experts.3.gate_proj.weight            float8 [F, D]         experts.3.gate_proj.weight
    experts.3.gate_proj.weight_scale_inv  [F / 128, D / 128]      bfloat16 [F, D]

Every encoding is read (rtpjax.models.encodings). Other matrices stay as they are stored.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np

from rtpjax.checkpoint import Checkpoint, CheckpointView, TensorInfo
from rtpjax.errors import CheckpointError
from rtpjax.models import ModelConfig
from rtpjax.models.encodings import Encoding, StoredMatrix, encoding_of
from rtpjax.models.registry import architectures
from rtpjax.models.weight_formats import PLAIN, WEIGHT

logger = logging.getLogger(__name__)

_EXPERT = re.compile(r"(?P<module>.*\.experts\.\d+\.(?P<which>gate|up|down)_proj)\.(?P<part>[^.]+)")
_BF16 = np.dtype(ml_dtypes.bfloat16)


class DequantizedExperts(CheckpointView):
    """A checkpoint with plain experts; see rtpjax.checkpoint.Checkpoint.

    Raises:
        CheckpointError: An expert is neither plain nor stored as config.json says.
    """

    def __init__(self, source: Checkpoint, config: ModelConfig, encoding: Encoding):
        super().__init__(source)
        self._encoding = encoding
        self._format = config.quantization.layers
        self._matrices = {
            f"{matrix.name}.{WEIGHT}": matrix
            for matrix in _matrices(source, config)
            if not _is_plain(source, matrix)
        }
        for matrix in self._matrices.values():
            self._check(matrix)
        modules = {matrix.name for matrix in self._matrices.values()}
        self.tensors: Mapping[str, TensorInfo] = {
            name: info
            for name, info in source.tensors.items()
            if name.rpartition(".")[0] not in modules
        } | {name: TensorInfo(name, matrix.shape, _BF16) for name, matrix in self._matrices.items()}
        logger.info(
            "%s: %d matrices of experts are kept as bfloat16", source.path, len(self._matrices)
        )

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See Checkpoint."""
        if name not in self._matrices:
            return self.source.read(name, index)
        matrix = self._matrices[name]
        out, num_inputs = matrix.shape
        outputs, inputs = (*(index or ()), slice(None), slice(None))[:2]
        rows = slice(*outputs.indices(out)[:2])
        # Scales and orders of inputs belong to whole rows.
        arrays = self._encoding.read(self._format, matrix, rows, slice(0, num_inputs))
        return self._format.decode(arrays)[:, inputs].astype(_BF16)

    def stored(self, names: Iterable[str]) -> list[str]:
        """Names under which tensors of the model stand in the files, each once."""
        stored: dict[str, None] = {}
        for name in names:
            matrix = self._matrices.get(name)
            parts = [name] if matrix is None else [f"{matrix.name}.{part}" for part in matrix.found]
            stored |= dict.fromkeys(parts)
        return list(stored)

    def _check(self, matrix: StoredMatrix) -> None:
        wanted = self._encoding.parts(self._format, matrix)
        faults = [
            f"{part} {list(shape)}"
            for part, (shape, dtype) in wanted.items()
            if matrix.found.get(part) != shape
            or (dtype and self.source.tensors[f"{matrix.name}.{part}"].dtype != dtype)
        ]
        if faults:
            found = ", ".join(f"{part} {list(shape)}" for part, shape in matrix.found.items())
            raise CheckpointError(
                f"{self.path}: {matrix.name} should have {', '.join(faults)} by the "
                f"quantization_config of config.json; found {found}. Check that every file is "
                "there."
            )


def with_plain_experts(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it is where its experts are plain, else a view of it."""
    names = checkpoint.config.get("architectures") or []
    if len(names) != 1 or names[0] not in architectures():
        return checkpoint
    if not any(_EXPERT.fullmatch(name) for name in checkpoint.tensors):
        return checkpoint
    config, encoding = ModelConfig.from_hf(checkpoint.config), encoding_of(checkpoint.config)
    if encoding is None or config.moe is None or config.quantization.layers == PLAIN:
        return checkpoint
    return DequantizedExperts(checkpoint, config, encoding)


def _matrices(source: Checkpoint, config: ModelConfig) -> list[StoredMatrix]:
    assert config.moe is not None
    F, D = config.moe.intermediate_size, config.hidden_size
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for name, info in source.tensors.items():
        if match := _EXPERT.fullmatch(name):
            found.setdefault(match["module"], {})[match["part"]] = info.shape
            shapes[match["module"]] = (D, F) if match["which"] == "down" else (F, D)
    return [
        StoredMatrix(
            module,
            shapes[module],
            parts,
            lambda part, index, module=module: source.read(f"{module}.{part}", index),
        )
        for module, parts in found.items()
    ]


def _is_plain(source: Checkpoint, matrix: StoredMatrix) -> bool:
    """Whether it is a weight alone, of more than a byte a number: what config.json leaves out."""
    if matrix.found.keys() != {WEIGHT}:
        return False
    dtype = source.tensors[f"{matrix.name}.{WEIGHT}"].dtype
    return dtype.itemsize > 1 and matrix.found[WEIGHT] == matrix.shape
