"""What every encoding is, and what several of them need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rtpjax.errors import CheckpointError
from rtpjax.models.quantization import Quantization
from rtpjax.models.weight_formats import SCALE, WEIGHT, Fp8, Int4, Int8, WeightFormat

# Matrices of a decoder layer, in every family here.
LAYER_MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


class StoredPart(NamedTuple):
    """A tensor that an encoding needs: its shape, and its format if only one will do."""

    shape: tuple[int, ...]
    dtype: np.dtype | None = None


class StoredMatrix(NamedTuple):
    """A matrix in a checkpoint.

    Attributes:
        name: Its module's.
        shape: `[out, in]`.
        found: Shapes of the module's tensors, by the last part of their names.
        read: Reads a slice of one of them.
    """

    name: str
    shape: tuple[int, int]
    found: Mapping[str, tuple[int, ...]]
    read: Callable[[str, tuple[slice, ...]], np.ndarray]


class Options:
    """quantization_config, or a part of it, whose errors name the key and what is supported."""

    def __init__(self, values: Mapping[str, Any], path: str = "quantization_config"):
        self.values = values
        self._path = path

    def one_of(self, key: str, supported: Sequence[Any], default: Any = None) -> Any:
        """The value of a key.

        Raises:
            CheckpointError: It is not supported.
        """
        value = self.values.get(key)
        value = default if value is None else value
        # 1 == True, but bits: true is a mistake.
        if not any(value == s and type(value) is type(s) for s in supported):
            raise self.error(key, value, ", ".join(map(repr, supported)))
        return value

    def group_size(self, default: int = 128) -> int | None:
        """Inputs that share a scale, None for all of them."""
        value = self.values.get("group_size")
        value = default if value is None else value
        if value == -1:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 2 or value % 2:
            raise self.error("group_size", value, "-1 and even numbers")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """A list of names; empty if the key is not there."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.error(key, value, "lists of names")
        return tuple(value)

    def part(self, key: str) -> Options:
        """A value that has keys of its own."""
        value = self.values.get(key)
        if not isinstance(value, Mapping):
            raise self.error(key, value, "objects")
        return Options(value, f"{self._path}.{key}")

    def error(self, key: str, value: Any, supported: str) -> CheckpointError:
        """What says that a value is not supported."""
        return CheckpointError(
            f"config.json: {self._path}.{key} is {value!r}; supported: {supported}. Use the "
            "checkpoint that the weights were made from, and QUANTIZATION."
        )


class Encoding:
    """One way to store quantized matrices.

    Attributes:
        method: What quant_method calls it.
        quantization: Formats that the matrices have once they are read.
    """

    method: ClassVar[str]
    quantization: Quantization

    def __init__(self, options: Options, config: Mapping[str, Any]):
        """Reads quantization_config.

        Args:
            options: It.
            config: The whole config.json.

        Raises:
            CheckpointError: It has a value that is not supported.
        """
        raise NotImplementedError

    def parts(self, format: WeightFormat, matrix: StoredMatrix) -> Mapping[str, StoredPart]:
        """The tensors that stand for a matrix, by the last part of their names."""
        raise NotImplementedError

    def may_be_there(self) -> tuple[str, ...]:
        """Last parts of names of tensors that are not needed."""
        return ()

    def read(
        self, format: WeightFormat, matrix: StoredMatrix, outputs: slice, inputs: slice
    ) -> dict[str, np.ndarray]:
        """The format's arrays, for some outputs and whole groups of inputs.

        Raises:
            CheckpointError: The values are not what the config says.
        """
        raise NotImplementedError


def layer_names(config: Mapping[str, Any]) -> list[str]:
    """Modules of all matrices within layers."""
    return [
        f"model.layers.{i}.{name}"
        for i in range(int(config.get("num_hidden_layers", 0)))
        for name in LAYER_MATRICES
    ]


def refuse_skipped_layers(
    options: Options, key: str, config: Mapping[str, Any], is_skipped: Callable[[str], bool]
) -> None:
    """All matrices within layers have one format here.

    Raises:
        CheckpointError: The config leaves some of them out.
    """
    skipped = [name for name in layer_names(config) if is_skipped(name)]
    if skipped:
        raise options.error(key, skipped[0], "lists with no matrix of a layer")


def unpacked_bits(words: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """int32 words -> uint8 numbers, the first in the lowest bits; an axis grows 32 / bits times."""
    words = np.moveaxis(words, axis, -1)
    bytes_ = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    if bits == 4:
        bytes_ = np.stack([bytes_ & 15, bytes_ >> 4], axis=-1).reshape(*bytes_.shape[:-1], -1)
    return np.moveaxis(bytes_, -1, axis)


def group_slice(format: Int4 | Int8 | Fp8, num_inputs: int, inputs: slice) -> slice:
    """The groups of whole groups of inputs."""
    group = format.group or num_inputs
    assert inputs.start % group == inputs.stop % group == 0
    return slice(inputs.start // group, inputs.stop // group)


def in_format(
    format: Int4 | Int8 | Fp8, numbers: np.ndarray, scales: np.ndarray
) -> dict[str, np.ndarray]:
    """weight and weight_scale of numbers `[out, in]` as the format counts them."""
    grouped = numbers.reshape(*scales.shape, -1)
    weight = format.packed(grouped).reshape(numbers.shape[0], -1)
    return {WEIGHT: weight, SCALE: np.ascontiguousarray(scales, np.float32)}


def block_scales(
    scales: np.ndarray, block: tuple[int, int], outputs: slice, num_inputs: int
) -> np.ndarray:
    """Scales of blocks, read from the block of the first output on, for each output.

    Args:
        scales: `[blocks of outputs, blocks of inputs]`.
        block: Outputs and inputs of a block.
        outputs: For which.
        num_inputs: Inputs, whole blocks.
    """
    first = outputs.start - outputs.start % block[0]
    rows = (np.arange(outputs.start, outputs.stop) - first) // block[0]
    assert scales.shape[1] * block[1] == num_inputs
    return scales[rows].astype(np.float32)
