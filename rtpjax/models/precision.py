"""Which number format each kind of array has."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True)
class Precision:
    """Number formats of a model's arrays.

    Norms, rope angles, softmax, attention partials and logits are float32 whatever stands here.

    Attributes:
        weights: Format of the parameters. Products take both inputs in it and accumulate in
            float32.
        activations: Format of the residual stream and of everything between products.
        cache: Format of cached keys and values.
    """

    weights: DTypeLike
    activations: DTypeLike
    cache: DTypeLike

    @staticmethod
    def of(act_type: str, platform: str) -> Precision:
        """The formats for an ACT_TYPE (`FP32`, `BF16`, `FP16`) on a platform (`cpu`, `gpu`).

        On the CPU XLA rounds a product to bf16 about 10 times slower than it leaves it in float32,
        so there only the weights are half precision.
        """
        weights = {"FP32": jnp.float32, "BF16": jnp.bfloat16, "FP16": jnp.float16}[act_type]
        inner = jnp.float32 if platform == "cpu" else weights
        return Precision(weights=weights, activations=inner, cache=inner)
