"""Experts of gpt-oss, whose gate and up take turns, in MXFP4 or plain, as the model has them.

    in the file                                               in the model
    experts.gate_up_proj_blocks uint8 [E, 2 F, D / 32, 16]    gate_proj.weight [E, F, D]: even rows
      with gate_up_proj_scales uint8 [E, 2 F, D / 32]         up_proj.weight   [E, F, D]: odd rows
    experts.down_proj_blocks, down_proj_scales                down_proj.weight [E, D, F]
    experts.gate_up_proj [E, D, 2 F], down_proj [E, F, D]     the same, where a file is not in MXFP4
    experts.gate_up_proj_bias [E, 2 F], down_proj_bias        gate_proj.bias, up_proj.bias [E, F]

MXFP4 (OCP Microscaling Formats 1.0) is blocks of 32 numbers along the inputs: 4 bits each, the
first of two in a byte's low half, and a power of two for the block. bfloat16 holds every such
product exactly, so reading them as bfloat16 changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from rtpjax.checkpoint import Checkpoint, CheckpointView, TensorInfo
from rtpjax.models.registry import architectures

BLOCK = 32
_EXPERTS = re.compile(
    r"(?P<layer>.*\.experts)\.(?P<which>gate_up_proj|down_proj)(?P<part>_blocks|_scales|_bias|)"
)
_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_BY_NIBBLE = np.concatenate([_VALUES, -_VALUES])
_EXPONENT_BIAS = 127
_BF16 = np.dtype(ml_dtypes.bfloat16)


class _Source(NamedTuple):
    """Where a tensor of the model stands.

    Attributes:
        stored: Of the file, without `_blocks`.
        start: The first of its output features.
        step: From one to the next.
    """

    stored: str
    start: int
    step: int


class InterleavedExperts(CheckpointView):
    """A checkpoint of gpt-oss with the model's experts; see rtpjax.checkpoint.Checkpoint."""

    def __init__(self, source: Checkpoint):
        super().__init__(source)
        self._sources: dict[str, _Source] = {}
        tensors: dict[str, TensorInfo] = {}
        for name, info in source.tensors.items():
            match = _EXPERTS.fullmatch(name)
            if match is None or not _is_whole(source, match):
                tensors[name] = info
            elif match["part"] != "_scales":
                for one, where in _parts(match, info):
                    tensors[one.name] = one
                    self._sources[one.name] = where
        self.tensors: Mapping[str, TensorInfo] = tensors

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """See Checkpoint."""
        if name not in self._sources:
            return self.source.read(name, index)
        stored, start, step = self._sources[name]
        shape = self.tensors[name].shape
        experts, wanted, *rest = (*(index or ()), *[slice(None)] * len(shape))[: len(shape)]
        begin, end, _ = wanted.indices(shape[1])
        rows = slice(start + begin * step, start + end * step, step)
        if not rest:
            return self.source.read(stored, (experts, rows))
        if f"{stored}_blocks" not in self.source.tensors:
            return self.source.read(stored, (experts, rest[0], rows)).swapaxes(1, 2)
        first, last, _ = rest[0].indices(shape[2])
        blocks = slice(first // BLOCK, -(-last // BLOCK))
        values = _decoded(
            self.source.read(f"{stored}_blocks", (experts, rows, blocks)),
            self.source.read(f"{stored}_scales", (experts, rows, blocks)),
        )
        offset = blocks.start * BLOCK
        return values[:, :, first - offset : last - offset]

    def stored(self, names: Iterable[str]) -> list[str]:
        """Names under which tensors of the model stand in the files, each once."""
        stored: dict[str, None] = {}
        for name in names:
            whole = self._sources[name].stored if name in self._sources else name
            parts = [f"{whole}_blocks", f"{whole}_scales"]
            stored |= dict.fromkeys(parts if parts[0] in self.source.tensors else [whole])
        return list(stored)


def with_separate_experts(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it is where its experts are the model's, else a view of it."""
    names = checkpoint.config.get("architectures") or []
    family = architectures().get(names[0]) if len(names) == 1 else None
    if family is None or not family.has_interleaved_experts:
        return checkpoint
    is_other = any(_EXPERTS.fullmatch(name) for name in checkpoint.tensors)
    return InterleavedExperts(checkpoint) if is_other else checkpoint


def _is_whole(source: Checkpoint, match: re.Match[str]) -> bool:
    """Whether blocks and scales are both there, and of shapes that belong to each other."""
    if match["part"] not in ("_blocks", "_scales"):
        return True
    stored = f"{match['layer']}.{match['which']}"
    blocks, scales = (source.tensors.get(f"{stored}{part}") for part in ("_blocks", "_scales"))
    return (
        blocks is not None
        and scales is not None
        and blocks.shape == (*scales.shape, BLOCK // 2)
        and {blocks.dtype, scales.dtype} == {np.dtype(np.uint8)}
    )


def _parts(match: re.Match[str], info: TensorInfo) -> list[tuple[TensorInfo, _Source]]:
    """The model's tensors that one of the file has."""
    dtype = info.dtype
    if match["part"] == "_bias":
        end, stored, shape = "bias", info.name, info.shape
    elif match["part"] == "_blocks":
        end, stored, dtype = "weight", info.name.removesuffix("_blocks"), _BF16
        shape = (*info.shape[:2], info.shape[2] * BLOCK)
    else:
        end, stored, shape = "weight", info.name, (info.shape[0], info.shape[2], info.shape[1])
    if match["which"] == "down_proj":
        name = f"{match['layer']}.down_proj.{end}"
        return [(TensorInfo(name, shape, dtype), _Source(stored, 0, 1))]
    half = (shape[0], shape[1] // 2, *shape[2:])
    return [
        (
            TensorInfo(f"{match['layer']}.{name}.{end}", half, dtype),
            _Source(stored, start, 2),
        )
        for start, name in enumerate(("gate_proj", "up_proj"))
    ]


def _decoded(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """bfloat16 `[E, rows, 32 * n]` of uint8 blocks `[E, rows, n, 16]` and scales `[E, rows, n]`."""
    nibbles = np.stack([blocks & 0xF, blocks >> 4], axis=-1).reshape(*scales.shape, BLOCK)
    powers = np.ldexp(np.float32(1), scales.astype(np.int32) - _EXPONENT_BIAS)
    values = _BY_NIBBLE[nibbles] * powers[..., None]
    return values.reshape(*scales.shape[:2], -1).astype(_BF16)
