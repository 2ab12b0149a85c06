"""A checkpoint seen in the formats that a model keeps its matrices in.

    stored in the file                   wanted                       kept on the device
    plain, or as an encoding       ──►   plain or quantized     ──►   as wanted, or plain where the
    (rtpjax.models.encodings)            (QUANTIZATION, or what       platform has no products
                                         the checkpoint is)           (quantization.kept_on);
                                                                      the CPU rotates int8

Every slice is made of the slices of the file that it needs, widened to whole groups of inputs, so
that a process reads and converts only what its devices keep.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rtpjax.checkpoint import Checkpoint, TensorInfo, check_tensors
from rtpjax.dummy_checkpoint import DummyCheckpoint
from rtpjax.errors import ConfigError
from rtpjax.models import ModelConfig, ParamSpec, Precision, abstract_state
from rtpjax.models.encodings import Encoding, StoredMatrix, encoding_of
from rtpjax.models.quantization import Quantization, kept_on, quantization_of
from rtpjax.models.weight_formats import INPUT_ORDER, PLAIN, WEIGHT, Int4, WeightFormat

logger = logging.getLogger(__name__)


def in_formats(
    checkpoint: Checkpoint,
    method: str | None,
    precision: Precision,
    platform: str,
) -> tuple[ModelConfig, Mapping[str, ParamSpec], Checkpoint]:
    """A model in the formats that a platform keeps, what it declares, and where that is read.

    Args:
        checkpoint: What is stored.
        method: A key of quantization.METHODS to quantize plain matrices to, or None.
        precision: Formats of what is not quantized.
        platform: `cpu` or `gpu`.

    Raises:
        CheckpointError: The checkpoint does not fit its model.
        ConfigError: It is quantized already, in another way, or it has experts.
    """
    stored = ModelConfig.from_hf(checkpoint.config)
    wanted = wanted_quantization(stored, method)
    kept = kept_on(platform, wanted)
    model = dataclasses.replace(stored, quantization=kept)
    specs = abstract_state(model, precision)
    if not wanted.is_plain:
        logger.info("Weights: %s, kept as %s", wanted, kept)
    if isinstance(checkpoint, DummyCheckpoint):
        return model, specs, checkpoint.in_formats(specs)
    if wanted.is_plain:
        return model, specs, checkpoint
    return model, specs, QuantizedCheckpoint(checkpoint, stored, wanted, kept, specs)


def wanted_quantization(
    config: ModelConfig, method: str | None, group: int | None = None
) -> Quantization:
    """The formats that a checkpoint's matrices shall have.

    Args:
        config: The checkpoint's; its quantization is what it is stored in.
        method: A key of quantization.METHODS, or None for what it is stored in.
        group: Inputs that share a scale, for int4; the largest of 128, 64 and 32 that divides
            every matrix if None.

    Raises:
        ConfigError: It is quantized already, in another way; it has experts; or groups do not
            divide the inputs.
    """
    if method is None:
        return config.quantization
    if config.moe is not None:
        raise ConfigError(
            f"{method} is for models without experts; experts are computed from plain weights "
            "only. Leave quantization out and split the model over more devices (TP_SIZE)."
        )
    if method == "int4":
        group = _group_for(config, group)
    wanted = quantization_of(method, is_tied=config.tie_word_embeddings, group=group)
    if config.quantization.is_plain:
        return wanted
    if type(config.quantization.layers) is not type(wanted.layers):
        raise ConfigError(
            f"QUANTIZATION is {method}, but the checkpoint is quantized already, as "
            f"{config.quantization.layers}. Leave QUANTIZATION and INT8_MODE out, or name the "
            "checkpoint that it was made from."
        )
    return config.quantization


def _group_for(config: ModelConfig, asked: int | None) -> int:
    q_size = config.num_attention_heads * config.head_dim
    sizes = (config.hidden_size, config.intermediate_size, q_size)
    fitting = [n for n in (128, 64, 32, 16, 8) if not any(size % n for size in sizes)]
    if asked is None and fitting:
        return fitting[0]
    if asked is None or asked % 2 or any(size % asked for size in sizes):
        raise ConfigError(
            f"int4 in groups of {asked or 8} does not fit matrices of {sizes} inputs; groups of "
            f"{fitting or 'no size'} do."
        )
    return asked


@dataclasses.dataclass(frozen=True)
class _Matrix:
    """What is known about one matrix: its module, shape and formats."""

    name: str
    shape: tuple[int, int]
    stored: WeightFormat
    wanted: WeightFormat
    kept: WeightFormat

    @property
    def group(self) -> int:
        """Inputs that must be read together; 1 if any slice will do."""
        format = self.wanted if self.stored == PLAIN else self.stored
        if format == PLAIN:
            return 1
        if getattr(format, "has_order", False):
            return self.shape[1]
        return getattr(format, "group", None) or self.shape[1]


class QuantizedCheckpoint:
    """A view of a checkpoint; see rtpjax.checkpoint.Checkpoint.

    Args:
        checkpoint: What is stored.
        config: Its model.
        wanted: From wanted_quantization.
        kept: Formats that the tensors of this view have: wanted, or plain.
        specs: rtpjax.models.abstract_state of the model with what is kept.

    Raises:
        CheckpointError: The checkpoint does not fit the model: every tensor is accounted for.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        wanted: Quantization,
        kept: Quantization,
        specs: Mapping[str, ParamSpec],
    ):
        self._checkpoint = checkpoint
        self._encoding = encoding_of(checkpoint.config)
        self.path: Path = checkpoint.path
        self.format = checkpoint.format
        self.config: dict[str, Any] = checkpoint.config
        self.files = checkpoint.files
        self.doubled: Mapping[str, tuple[str, ...]] = {}
        stored = config.quantization
        self._matrices = {
            module: _Matrix(
                module,
                _shape(specs, module, kept),
                stored.of(module),
                wanted.of(module),
                kept.of(module),
            )
            for module in _modules(specs)
        }
        self._owner = {
            f"{module}.{part}": (module, part)
            for module, matrix in self._matrices.items()
            if not matrix.stored == matrix.wanted == matrix.kept == PLAIN
            for part in matrix.kept.parts
        }
        self._check(specs)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, spec.shape, spec.dtype)
            if name in self._owner
            else checkpoint.tensors[name]
            for name, spec in specs.items()
        }
        self._last: tuple[Any, dict[str, np.ndarray]] | None = None

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See Checkpoint."""
        if name not in self._owner:
            return self._checkpoint.read(name, index)
        module, part = self._owner[name]
        matrix, shape = self._matrices[module], self.tensors[name].shape
        bounds = [slice(*s.indices(n)) for s, n in zip(index or (), shape, strict=False)]
        bounds += [slice(0, n) for n in shape[len(bounds) :]]
        if part == INPUT_ORDER:
            some = slice(0, min(8, matrix.shape[0]))
            return self._arrays(matrix, some, slice(0, matrix.shape[1]))[part][bounds[0]]
        outputs, columns = bounds
        # A column of a part stands for so many inputs: 2 for packed int4, a group for scales.
        per_column = matrix.shape[1] // shape[1]
        group = max(matrix.group, per_column)
        first = columns.start * per_column // group * group
        last = min(-(-columns.stop * per_column // group) * group, matrix.shape[1])
        values = self._arrays(matrix, outputs, slice(first, last))[part]
        start = columns.start - first // per_column
        return values[:, start : start + columns.stop - columns.start]

    def _arrays(self, matrix: _Matrix, outputs: slice, inputs: slice) -> dict[str, np.ndarray]:
        """A matrix's parts as they are kept; the last ones are remembered, as all are asked for."""
        key = (matrix.name, outputs.start, outputs.stop, inputs.start, inputs.stop)
        if self._last is None or self._last[0] != key:
            self._last = key, self._converted(matrix, outputs, inputs)
        return self._last[1]

    def _converted(self, matrix: _Matrix, outputs: slice, inputs: slice) -> dict[str, np.ndarray]:
        if matrix.stored == PLAIN:
            weight = self._checkpoint.read(f"{matrix.name}.{WEIGHT}", (outputs, inputs))
            # Rounded once: to what is kept, unless that is plain.
            rounded = matrix.wanted if matrix.kept == PLAIN else matrix.kept
            arrays = rounded.encode(np.asarray(weight, np.float32))
        else:
            assert self._encoding is not None
            rounded = matrix.wanted
            arrays = self._encoding.read(matrix.stored, self._stored(matrix), outputs, inputs)
        if matrix.kept == rounded:
            return arrays
        return matrix.kept.encode(rounded.decode(arrays))

    def _stored(self, matrix: _Matrix) -> StoredMatrix:
        prefix = f"{matrix.name}."
        found = {
            name.removeprefix(prefix): info.shape
            for name, info in self._checkpoint.tensors.items()
            if name.startswith(prefix)
        }

        def read(part: str, index: tuple[slice, ...]) -> np.ndarray:
            return self._checkpoint.read(prefix + part, index)

        return StoredMatrix(matrix.name, matrix.shape, found, read)

    def _check(self, specs: Mapping[str, ParamSpec]) -> None:
        """Accounts for what is stored."""
        expected = {name: spec for name, spec in specs.items() if name not in self._owner}
        ignored: set[str] = set()
        for matrix in self._matrices.values():
            expected |= self._expected(matrix, self._encoding)
            if matrix.stored != PLAIN and self._encoding is not None:
                ignored |= {f"{matrix.name}.{part}" for part in self._encoding.may_be_there()}
        check_tensors(self._checkpoint, expected, ignored - expected.keys())

    def _expected(self, matrix: _Matrix, encoding: Encoding | None) -> dict[str, ParamSpec]:
        """The tensors that stand for a matrix in the file."""
        if matrix.stored == PLAIN:
            spec = ParamSpec(matrix.shape, np.dtype(np.float32), ())
            return {f"{matrix.name}.{WEIGHT}": spec}
        assert encoding is not None
        parts = encoding.parts(matrix.stored, self._stored(matrix))
        return {
            f"{matrix.name}.{part}": ParamSpec(shape, dtype or np.dtype(np.float32), ())
            for part, (shape, dtype) in parts.items()
        }


def _modules(specs: Mapping[str, ParamSpec]) -> list[str]:
    """Modules that have a matrix."""
    suffix = f".{WEIGHT}"
    return [
        name.removesuffix(suffix)
        for name, spec in specs.items()
        if name.endswith(suffix) and len(spec.shape) == 2
    ]


def _shape(specs: Mapping[str, ParamSpec], module: str, kept: Quantization) -> tuple[int, int]:
    out, columns = specs[f"{module}.{WEIGHT}"].shape
    return out, columns * (2 if isinstance(kept.of(module), Int4) else 1)
