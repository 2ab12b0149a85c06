"""Which format (rtpjax.models.weight_formats) each of a model's matrices has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rtpjax.models.weight_formats import PLAIN, Fp8, Int4, Int8, WeightFormat

# Modules that are not within layers.
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
# Within layers, but never quantized: they are small, and a token's experts depend on them.
_ROUTERS = (".mlp.gate", ".mlp.shared_expert_gate")


@dataclasses.dataclass(frozen=True)
class Quantization:
    """Formats of a model's matrices.

    Attributes:
        layers: Of all products within layers.
        head: Of the output matrix, if the model has one of its own.
        embedding: Of the embedding, which tied models score with.
    """

    layers: WeightFormat = PLAIN
    head: WeightFormat = PLAIN
    embedding: WeightFormat = PLAIN

    def of(self, module: str) -> WeightFormat:
        """The format of a module's matrix."""
        if module.endswith(_ROUTERS):
            return PLAIN
        return {EMBEDDING: self.embedding, HEAD: self.head}.get(module, self.layers)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is quantized."""
        return self == UNQUANTIZED


UNQUANTIZED = Quantization()

# What QUANTIZATION and `convert --quantize` know. The output matrix has eight bits per row
# whatever the layers have.
METHODS: Mapping[str, WeightFormat] = {"int8": Int8(), "int4": Int4(), "fp8": Fp8()}


def quantization_of(method: str, *, is_tied: bool, group: int | None = None) -> Quantization:
    """The formats that a method of METHODS means.

    Args:
        method: Its name.
        is_tied: Whether the model scores with its embedding; an embedding of its own is only
            looked up, so it stays as it is.
        group: Inputs that share a scale, for int4.
    """
    layers = METHODS[method]
    if group is not None:
        layers = dataclasses.replace(layers, group=group)
    return Quantization(layers, PLAIN if is_tied else Int8(), Int8() if is_tied else PLAIN)


def kept_on(platform: str, quantization: Quantization) -> Quantization:
    """The formats that a platform keeps: what it has no products for is kept plain.

    The CPU multiplies int8 by int8 with a scale per output, and keeps these rotated. It has no
    product of the others, and converting them in every step takes several times as long as reading
    plain weights.
    """
    if platform != "cpu":
        return quantization
    kept = {
        field.name: Int8(is_rotated=True) if value == Int8() else PLAIN
        for field in dataclasses.fields(quantization)
        for value in [getattr(quantization, field.name)]
    }
    return Quantization(**kept)
