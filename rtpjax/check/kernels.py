"""Every kernel of the op registry against its plain twin, over the shapes of real models.

An op whose cases are not made here gets random numbers in the shapes that `make gpu-check` compiles
it with (rtpjax/plan/kernel_cases.py): a new op is checked from its first day on.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import cases as attention
from pallas_kernels import quantized_write
from pallas_kernels.quantized import pack_int4
from pallas_kernels.registry import Implementation, Op, Target, UnsupportedError, tracing_for
from pallas_kernels.shapes import ATTENTION_SHAPES, AttentionShape
from rtpjax.check.results import Result, judged
from rtpjax.plan import kernel_cases

TWIN = "reference"
_INTERPRETED_AS = Target("gpu", 90)  # whose limits hold where kernels are interpreted
_FAILURES = (jax.errors.JaxRuntimeError, ValueError, NotImplementedError)


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of an op, with numbers.

    Attributes:
        name: The shape.
        arguments: Positional, (trees of) arrays.
        arrays: Further arrays, by name.
        options: Static keyword arguments.
        num_rows: Leading rows of the result that have a meaning; None for all.
        tolerance: Of an element, relative to 1 + its size; None goes by the result's format.
    """

    name: str
    arguments: tuple[Any, ...]
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    num_rows: int | None = None
    tolerance: float | None = None


def check_kernels(target: Target, *, every_shape: bool, only: str = "") -> Iterator[Result]:
    """Compares all kernels, one result each; on the CPU in interpret mode.

    Args:
        target: The device.
        every_shape: The whole table, not one shape of each kind; on a GPU it always is.
        only: Ops whose name contains this.
    """
    is_interpreted = target.platform != "gpu"
    for op in kernel_cases.ops().values():
        if only not in op.name:
            continue
        cases = list(_cases(op, small=is_interpreted and not every_shape))
        for implementation in op.implementations.values():
            if "gpu" not in implementation.platforms or implementation.name == TWIN:
                continue
            if is_interpreted and not _can_interpret(implementation):
                if implementation.name != "xla":  # XLA's own code, which other tests compare
                    what = f"{op.name}/{implementation.name}"
                    yield Result(what, "", "skipped", "needs a GPU: it has no interpret mode here")
                continue
            for case in cases:
                yield _compare(op, implementation, case, target)


def _can_interpret(implementation: Implementation) -> bool:
    return "interpret" in inspect.signature(implementation.function).parameters


def _compare(op: Op, implementation: Implementation, case: Case, target: Target) -> Result:
    what = f"{op.name}/{implementation.name}"
    function = implementation.function
    limits = target
    if target.platform != "gpu":
        function, limits = partial(function, interpret=True), _INTERPRETED_AS
    try:
        if implementation.supports is not None:
            implementation.supports(limits, *case.arguments, **case.arrays, **case.options)
    except UnsupportedError as error:
        return Result(what, case.name, "refused", str(error))
    try:
        got = _run(function, case)
        with jax.default_matmul_precision("highest"), tracing_for(target):
            want = _run(op.implementations[TWIN].function, case)
    except _FAILURES as error:
        return Result(what, case.name, "FAILED", f"{type(error).__name__}: {error}"[:300])
    errors = [
        _worst(np.asarray(g, np.float32), np.asarray(w, np.float32), case, g.dtype)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    ]
    return judged(what, case.name, max(errors))


def _run(function: Callable[..., Any], case: Case) -> Any:
    call = jax.jit(lambda arguments, arrays: function(*arguments, **arrays, **case.options))
    return jax.block_until_ready(call(case.arguments, case.arrays))


def _worst(got: np.ndarray, want: np.ndarray, case: Case, dtype: Any) -> float:
    """Largest error as a part of what is tolerated; inf for NaN."""
    got, want = got[: case.num_rows], want[: case.num_rows]
    tolerance = case.tolerance or attention.TOLERANCE[jnp.dtype(dtype).name]
    # Sums of many products are as exact as their terms are large, not as they happen to cancel.
    size = max(1.0, float(np.sqrt(np.mean(np.square(want))))) if want.size else 1.0
    errors = np.abs(got - want) / (tolerance * (size + np.abs(want)))
    return float(np.nan_to_num(errors, nan=np.inf).max(initial=0.0))


def _cases(op: Op, *, small: bool) -> Iterator[Case]:
    maker = _MAKERS.get(op.name)
    if maker is not None:
        yield from maker(small)
        return
    planned = kernel_cases.cases(op.name)
    for case in planned[:1] if small else planned:
        arguments = jax.tree.map(partial(_random, np.random.default_rng(0)), case.arguments)
        yield Case(case.name, arguments, options=case.options)


def _random(rng: np.random.Generator, shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Numbers of about 1; counts and places (int32) are 0."""
    if shape.dtype == jnp.int32:
        return jnp.zeros(shape.shape, jnp.int32)
    if jnp.issubdtype(shape.dtype, jnp.integer):
        info = jnp.iinfo(shape.dtype)
        return jnp.asarray(rng.integers(info.min, info.max, shape.shape), shape.dtype)
    return jnp.asarray(rng.standard_normal(shape.shape), shape.dtype)


def _attention(small: bool) -> Iterator[Case]:
    """Decodes and mixed rows; random pages, NaN wherever a row owns nothing, lengths at edges."""
    if small:
        shapes = [attention.reduced(shape) for shape in attention.DISTINCT_SHAPES]
    else:
        shapes = list(ATTENTION_SHAPES)
    for i, shape in enumerate(shapes):
        page_size = 16 if small else (16, 64)[i % 2]
        contexts = attention.decode_lens(page_size)
        yield _attention_case(shape, [1] * len(contexts), contexts, page_size, decode=True)
        yield _attention_case(shape, *attention.mixed_lens(page_size), page_size, decode=False)


def _attention_case(
    shape: AttentionShape, query_lens: list[int], contexts: list[int], page_size: int, decode: bool
) -> Case:
    operands = attention.case(shape, query_lens, contexts, page_size=page_size, num_shared=2)
    arguments, arrays = operands[:6], operands._asdict()
    named = {name: arrays[name] for name in ("sinks", "k_scales", "v_scales")}
    options = {**attention.scores_of(shape)._asdict(), "decode": decode}
    kind = "decode" if decode else "mixed"
    return Case(f"{shape.name} {kind}", arguments, named, options, num_rows=sum(query_lens))


def _quantized_matmul(small: bool) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    out, size = (80, 512) if small else (4096, 4096)
    for rows in (3,) if small else (1, 8, 64):
        x = jnp.asarray(rng.standard_normal((rows, size)), jnp.bfloat16)
        weight = jnp.asarray(rng.integers(-127, 128, (out, size)), jnp.int8)
        scales = jnp.asarray(rng.uniform(0.001, 0.01, (out, 1)), jnp.float32)
        yield Case(f"int8 [{rows}] {out} x {size}", (x, weight, scales), tolerance=1e-3)
        for group in (32, 128):
            packed = pack_int4(jnp.asarray(rng.integers(0, 16, (out, size))), group)
            scales = jnp.asarray(rng.uniform(0.01, 0.1, (out, size // group)), jnp.float32)
            zeros = jnp.asarray(rng.integers(0, 16, scales.shape), jnp.uint8)
            name = f"int4 group {group} [{rows}] {out} x {size}"
            yield Case(name, (x, packed, scales, zeros), tolerance=1e-3)


def _grouped_matmul(small: bool) -> Iterator[Case]:
    """Experts without rows, and rows of no expert."""
    rng = np.random.default_rng(0)
    E, out, size = (4, 70, 128) if small else (16, 768, 2048)
    for rows in (24,) if small else (16, 256):
        counts = rng.multinomial(rows - 3, np.ones(E) / E)
        counts[1], counts[2] = 0, counts[1] + counts[2]
        starts = jnp.asarray(np.cumsum([0, *counts]), jnp.int32)
        x = jnp.asarray(rng.standard_normal((rows, size)), jnp.bfloat16)
        weight = jnp.asarray(rng.standard_normal((E, out, size)) / 10, jnp.bfloat16)
        name = f"[{rows}] {E} x {out} x {size}"
        yield Case(name, (x, weight, starts), num_rows=rows - 3, tolerance=1e-3)


def _quantized_write(small: bool) -> Iterator[Case]:
    """Pages that begin, stay as they are or are scaled anew, some with two tokens; padding."""
    shapes = [(2, 64, 6)] if small else [(8, 128, 1), (8, 128, 64), (3, 64, 8), (4, 256, 8)]
    for K, H, rows in shapes:
        for dtype, tolerance in (("int8", 0.03), ("float8_e4m3fn", 0.15)):  # a step of rounding
            operands = _write_operands(K, H, rows, dtype)
            yield Case(f"{dtype} [{rows}] {K} x {H}", (operands,), tolerance=tolerance)


def _write_operands(K: int, H: int, rows: int, dtype: str) -> quantized_write.Operands:
    """Of four rows the third is of the second one's sequence, and the fourth padding.

    Pages of no row have the largest numbers. New ones are about 100, so that scales are about 1 and
    their errors count; twins scale what stands behind a page's tokens too, which is 0 here.
    """
    rng, page_size = np.random.default_rng(0), 16
    held = np.full((2, rows + 1, page_size, K, H), quantized_write.LARGEST[dtype])
    scales = np.full((2, rows + 1, K), 9.0)
    held[:, 0], scales[:, 0] = 0, 0  # padding's page
    slots = np.zeros(rows, np.int32)
    for row in range(rows):
        page, offset = row + 1, (7, 14, 0)[row % 3]
        if row % 4 < 2:
            held[:, page, :offset] = rng.integers(-100, 101, (2, offset, K, H))
            held[:, page, offset:] = 0
            scales[:, page] = 2.0 ** rng.integers(-2, 2, (2, K))
            slots[row] = page * page_size + offset
        elif row % 4 == 2:
            slots[row] = slots[row - 1] + 1
    new = 100 * rng.standard_normal((2, rows, K, H)) * (slots > 0)[:, None, None]
    k_pages, v_pages = (jnp.asarray(x, jnp.float32).astype(dtype) for x in held)
    k_scales, v_scales = (jnp.asarray(x, jnp.float32) for x in scales)
    k, v = (jnp.asarray(x, jnp.bfloat16) for x in new)
    starts = jnp.arange(rows + 1, dtype=jnp.int32)
    return quantized_write.Operands(
        k_pages, v_pages, k_scales, v_scales, k, v, jnp.asarray(slots), starts
    )


_MAKERS: dict[str, Callable[[bool], Iterator[Case]]] = {
    "paged_attention": _attention,
    "quantized_matmul": _quantized_matmul,
    "grouped_matmul": _grouped_matmul,
    "quantized_write": _quantized_write,
}
