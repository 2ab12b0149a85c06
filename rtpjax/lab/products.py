"""The four products of a layer, and the one with the output matrix, called one after the other.

Calls of one program have weights of their own, more than L2 holds, and each takes what the one
before made: calls that do not depend on each other may run side by side in a CUDA graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.row_matmul import Around, Operands
from rtpjax.lab.steps import random_array
from rtpjax.models import ModelConfig

_WEIGHTS_BYTES = 400 << 20  # of one program: several times what L2 holds
Run = Callable[[Operands, Around], list[jax.Array]]


@dataclasses.dataclass(frozen=True)
class Product:
    """One of a layer's launches.

    Attributes:
        name: qkv, o, gate_up, down, lm_head.
        outputs: Of each weight.
        inputs: Of all.
        gated: The activation between gate and up.
        is_normed: Whether a norm stands before it.
        has_residual: Whether a residual stands after it.
    """

    name: str
    outputs: tuple[int, ...]
    inputs: int
    gated: str | None = None
    is_normed: bool = False
    has_residual: bool = False

    @property
    def bytes(self) -> int:
        """Of the weights in bf16."""
        return 2 * sum(self.outputs) * self.inputs


def products_of(model: ModelConfig) -> dict[str, Product]:
    """Those of a model, by name."""
    D, F, H = model.hidden_size, model.intermediate_size, model.head_dim
    heads, kv_heads = model.num_attention_heads * H, model.num_key_value_heads * H
    found = (
        Product("qkv", (heads, kv_heads, kv_heads), D, is_normed=True),
        Product("o", (D,), heads, has_residual=True),
        Product("gate_up", (F, F), D, gated=model.hidden_act, is_normed=True),
        Product("down", (D,), F, has_residual=True),
        Product("lm_head", (model.vocab_size,), D),
    )
    return {product.name: product for product in found}


def num_calls(product: Product, *, is_small: bool) -> int:
    """How many calls with weights of their own L2 does not hold."""
    return 2 if is_small else max(3, min(32, _WEIGHTS_BYTES // product.bytes))


def operands_of(product: Product, rows: int, calls: int, format: Any = None) -> list[Operands]:
    """Of each call; weights in bf16, or in a format of rtpjax.models.weight_formats."""
    x = random_array("x", (rows, product.inputs))
    ones = jnp.ones((product.inputs,), jnp.bfloat16)
    residual = random_array("residual", (rows, product.outputs[0]))
    return [
        Operands(
            x=x,
            weights=tuple(
                _weight(f"{product.name} {i} {j}", (out, product.inputs), format)
                for j, out in enumerate(product.outputs)
            ),
            biases=(None,) * len(product.outputs),
            norm=ones if product.is_normed else None,
            residual=residual if product.has_residual else None,
        )
        for i in range(calls)
    ]


def _weight(name: str, shape: tuple[int, int], format: Any) -> Any:
    if format is None:
        return random_array(name, shape)
    axes = ("embed", "embed")
    params = nnx.eval_shape(lambda: format.declare(shape, axes, jnp.bfloat16, rngs=nnx.Rngs(0)))
    arrays = {key: param.get_value() for key, param in params.items()}
    return format.operand(
        {key: random_array(f"{name} {key}", x.shape, x.dtype) for key, x in arrays.items()}
    )


def around_of(product: Product) -> Around:
    """What stands around it."""
    return Around(product.gated, 1e-5, jnp.dtype(jnp.bfloat16))


def compile_chain(
    product: Product, rows: int, run: Run, *, is_small: bool, format: Any = None
) -> Any:
    """The program of all calls, from shapes alone; takes what operands_of makes."""
    calls = num_calls(product, is_small=is_small)
    shapes = jax.eval_shape(partial(operands_of, product, rows, calls, format))
    return jax.jit(chain(product, run)).lower(shapes).compile()


def chain(product: Product, run: Run) -> Callable[[Sequence[Operands]], jax.Array]:
    """A program of all calls; what one makes is a residual or x of the next."""
    around = around_of(product)

    def call(every: Sequence[Operands]) -> jax.Array:
        made: jax.Array | None = None
        for operands in every:
            if made is not None and product.has_residual:
                operands = operands._replace(residual=made)
            elif made is not None:
                operands = operands._replace(x=made[:, : product.inputs])
            made = run(operands, around)[0].astype(jnp.bfloat16)
        assert made is not None
        return made

    return call
