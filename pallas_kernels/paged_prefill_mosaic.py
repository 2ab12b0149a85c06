"""Ragged prefill attention over the paged cache for Hopper (Pallas on Mosaic GPU, sm90).

The same as `paged_prefill`, which runs on every GPU; never chosen unless it is named. One program
does a tile of one kv head (paged_prefill_mosaic_tiles draws tiles and steps) with three warpgroups:

    warpgroup 2   page ids ─► TMA copies of pages into a ring of shared memory
                                  k [stages, BLOCK_S, H]      v [stages, BLOCK_S, H]
                                    │ k_ready     ▲ k_free      │ v_ready     ▲ v_free
                                    ▼             │             ▼             │
    warpgroups    wgmma  q [64, H] x k ─► scores ─► softmax ─► p (registers) x v ─► sums [64, H]
    0 and 1       each has 64 of the tile's 128 rows; both go through the same steps

A copy brings whole pages, also what a row does not own of them: it is masked in the scores, and
in v overwritten with 0, half of the rows by each warpgroup, since 0 times NaN is NaN. A head's sink
takes part outside of the kernel: a first score without a value only scales the result.

With `interpret` the two products read the same shared memory without wgmma, which JAX's interpreter
cannot transpose or feed from registers; everything else is what runs on the GPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.paged_prefill_mosaic_tiles import (
    BLOCK_M,
    BLOCK_S,
    NUM_COMPUTE,
    WARPGROUP_M,
    Tiles,
    Tiling,
    by_token,
    in_tiles,
    is_seen,
    tiles_of,
)
from pallas_kernels.paged_tiles import LOG2_E, MASKED, Operands, Ref, Scores

# Registers a thread, of 65,536 for 3 warpgroups of 128 threads: copying needs few.
_COMPUTE_REGISTERS, _COPY_REGISTERS = 240, 24


def paged_prefill_mosaic(
    operands: Operands, scores: Scores, *, interpret: Any = False
) -> jax.Array:
    """Causal attention of a ragged batch.

    Args:
        operands: The arrays; the cache is in q's dtype.
        scores: How products become scores.
        interpret: JAX's InterpretGPUParams: runs on the CPU, slowly, for tests.

    Returns:
        `[T, N, H]` in q's dtype; what stands at tokens of no row is unspecified.
    """
    tiling = Tiling.of(operands)
    (T, _, H), K = operands.q.shape, operands.k_pages.shape[2]
    window = scores.window
    tiles = tiles_of(operands.query_start, operands.context_lens, T, tiling.block_q, window)
    q = in_tiles(operands.q, tiles, tiling)
    num_rows = q.shape[1]
    kernel = plgpu.kernel(
        partial(_kernel, call=_Call(scores, tiling, bool(interpret))),
        out_type=[
            jax.ShapeDtypeStruct((K, num_rows, H), q.dtype),
            jax.ShapeDtypeStruct((K, num_rows), jnp.float32),
        ],
        scratch_types=_scratch(H, q.dtype, tiling),
        grid=(K, num_rows // BLOCK_M),
        grid_names=("kv_head", "tile"),
        num_threads=NUM_COMPUTE + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret or None,
        kernel_name="paged_prefill_mosaic",
    )
    # An array of its own: Mosaic's launch asks for buffers at multiples of 256 bytes, and XLA would
    # hand it a part of the step's packed vector.
    page_table = jnp.maximum(operands.page_table, 0)
    out, log_totals = kernel(
        q, operands.k_pages, operands.v_pages, page_table, jnp.stack(tiles, axis=1)
    )
    out = by_token(out, operands.query_start, T, tiling)
    if operands.sinks is None:
        return out
    log_totals = by_token(log_totals, operands.query_start, T, tiling)
    share = jax.nn.sigmoid(log_totals / LOG2_E - operands.sinks.astype(jnp.float32)[None, :])
    return (out.astype(jnp.float32) * share[:, :, None]).astype(out.dtype)


def _scratch(head_dim: int, dtype: Any, tiling: Tiling) -> dict[str, Any]:
    """Shared memory and barriers of a program."""
    # JAX 0.12 declares a method abstract that these two leave out and nothing calls.
    tiling_of = plgpu.TilingTransform((8, 64))  # type: ignore[reportAbstractUsage]
    swizzle = plgpu.SwizzleTransform(128)  # type: ignore[reportAbstractUsage]
    transforms = (tiling_of, swizzle)
    stages = tiling.num_stages
    kv = plgpu.SMEM((stages, BLOCK_S, head_dim), dtype, transforms=transforms)
    ready = plgpu.Barrier(num_arrivals=tiling.num_copies, num_barriers=stages)
    free = plgpu.Barrier(num_arrivals=NUM_COMPUTE, num_barriers=stages)
    return {
        "rows": plgpu.SMEM((NUM_COMPUTE, WARPGROUP_M, head_dim), dtype, transforms=transforms),
        "log_totals": plgpu.SMEM((NUM_COMPUTE, WARPGROUP_M), jnp.float32),
        "k": kv,
        "v": kv,
        "rows_ready": plgpu.Barrier(num_barriers=NUM_COMPUTE),
        "k_ready": ready,
        "v_ready": ready,
        "k_free": free,
        "v_free": free,
        "v_masked": plgpu.Barrier(num_arrivals=NUM_COMPUTE),
    }


@dataclasses.dataclass(frozen=True)
class _Call:
    """What is static, and the few operations that differ when interpreted."""

    scores: Scores
    tiling: Tiling
    is_interpreted: bool

    def laid_out(self, x: jax.Array, *, rows: bool = False) -> jax.Array:
        """x over the threads of a warpgroup as wgmma's results are, or as their row sums."""
        if self.is_interpreted:
            return x
        return plgpu.layout_cast(x, plgpu.Layout.WGMMA.reduce(1) if rows else plgpu.Layout.WGMMA)

    def iota(self, shape: tuple[int, int], axis: int) -> jax.Array:
        return self.laid_out(lax.broadcasted_iota(jnp.int32, shape, axis))

    def full(self, shape: tuple[int, ...], value: float) -> jax.Array:
        return self.laid_out(jnp.full(shape, value, jnp.float32), rows=len(shape) == 1)

    def products(self, q: Ref, k: Ref) -> jax.Array:
        """q `[64, H]` x k `[BLOCK_S, H]` in shared memory: float32 `[64, BLOCK_S]`."""
        if self.is_interpreted:
            return _dot(q[...], k[...].T)

        def multiply(sums: Ref) -> jax.Array:
            plgpu.wgmma(sums, q, k.T)
            return sums[...]

        return pl.run_scoped(
            multiply, plgpu.WGMMAAccumulatorRef((q.shape[0], k.shape[0]), jnp.float32)
        )

    def add_weighted(self, sums: jax.Array, weights: jax.Array, v: Ref) -> jax.Array:
        """sums `[64, H]`, float32, and weights `[64, BLOCK_S]` x v `[BLOCK_S, H]`."""
        weights = weights.astype(v.dtype)
        if self.is_interpreted:
            return sums + _dot(weights, v[...])

        def multiply(total: Ref) -> None:
            plgpu.wgmma(total, weights, v)

        # An accumulator that starts with sums; typed as a reference, it comes back as an array.
        total: Any = plgpu.WGMMAAccumulatorRef.init(sums)
        return pl.run_state(multiply)(total)

    def score(self, products: jax.Array) -> jax.Array:
        """Scores in base 2. tanh by exponentials: the instruction of that name is too coarse."""
        scale, soft_cap = self.scores.scale, self.scores.soft_cap
        if soft_cap is None:
            return products * (scale * LOG2_E)
        raised = jnp.exp2(products * (2 * LOG2_E * scale / soft_cap))
        return (1.0 - 2.0 / (raised + 1.0)) * (soft_cap * LOG2_E)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.dot(a, b, preferred_element_type=jnp.float32)


class _State(NamedTuple):
    """A softmax-weighted sum in progress, base 2; see paged_tiles.Softmax."""

    maximum: jax.Array
    total: jax.Array
    weighted: jax.Array


def _kernel(
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    table_ref: Ref,
    tiles_ref: Ref,
    out_ref: Ref,
    log_totals_ref: Ref,
    *,
    call: _Call,
    **scratch: Ref,
) -> None:
    kv_head, tile = lax.axis_index("kv_head"), lax.axis_index("tile")
    warpgroup = lax.axis_index("warpgroup")
    where = Tiles(*(tiles_ref[tile, i] for i in range(len(Tiles._fields))))

    @pl.when((warpgroup < NUM_COMPUTE) & (where.first_step < where.end_step))
    def _() -> None:
        plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
        rows = scratch["rows"].at[warpgroup]
        place = kv_head, pl.ds(tile * BLOCK_M + warpgroup * WARPGROUP_M, WARPGROUP_M)
        plgpu.copy_gmem_to_smem(q_ref.at[place], rows, scratch["rows_ready"].at[warpgroup])
        plgpu.barrier_wait(scratch["rows_ready"].at[warpgroup])
        state = _attend(call, where, warpgroup, rows, scratch)
        rows[...] = (
            state.weighted / lax.broadcast_in_dim(state.total, state.weighted.shape, [0])
        ).astype(rows.dtype)
        totals = scratch["log_totals"].at[warpgroup]
        totals[...] = state.maximum + jnp.log(state.total) * LOG2_E
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(rows, out_ref.at[place])
        plgpu.copy_smem_to_gmem(totals, log_totals_ref.at[place])
        plgpu.wait_smem_to_gmem(0)

    @pl.when((warpgroup == NUM_COMPUTE) & (where.first_step < where.end_step))
    def _() -> None:
        plgpu.set_max_registers(_COPY_REGISTERS, action="decrease")
        _copy_pages(call.tiling, where, kv_head, (k_ref, v_ref, table_ref), scratch)


def _copy_pages(
    tiling: Tiling,
    where: Tiles,
    kv_head: jax.Array,
    refs: tuple[Ref, Ref, Ref],
    scratch: dict[str, Ref],
) -> None:
    """Brings every step's pages as soon as its place in the ring is free."""
    k_ref, v_ref, table_ref = refs

    def stage_of(step: jax.Array) -> jax.Array:
        return lax.rem(step - where.first_step, jnp.int32(tiling.num_stages))

    def bring(step: jax.Array, _: None) -> None:
        stage = stage_of(step)
        for name, source in (("k", k_ref), ("v", v_ref)):

            @pl.when(step - where.first_step >= tiling.num_stages)
            def _(name: str = name) -> None:
                plgpu.barrier_wait(scratch[f"{name}_free"].at[stage])

            for copy in range(tiling.num_copies):
                column, slot = tiling.place(step, copy)
                page = table_ref[where.row, column]
                plgpu.copy_gmem_to_smem(
                    source.at[page, pl.ds(slot, tiling.copy_len), kv_head],
                    scratch[name].at[stage, pl.ds(copy * tiling.copy_len, tiling.copy_len)],
                    scratch[f"{name}_ready"].at[stage],
                )

    def see_freed(step: jax.Array, _: None) -> None:
        for name in ("k_free", "v_free"):
            plgpu.barrier_wait(scratch[name].at[stage_of(step)])

    lax.fori_loop(where.first_step, where.end_step, bring, None)
    # No barrier is left with an arrival that nobody has seen.
    last = jnp.maximum(where.first_step, where.end_step - tiling.num_stages)
    lax.fori_loop(last, where.end_step, see_freed, None)


def _attend(
    call: _Call, where: Tiles, warpgroup: jax.Array, q: Ref, scratch: dict[str, Ref]
) -> _State:
    """The sums of a warpgroup's rows over all steps of its tile."""
    head_dim, window = q.shape[1], call.scores.window

    def mask(step: jax.Array, scores: jax.Array) -> jax.Array:
        m = call.iota((WARPGROUP_M, BLOCK_S), 0) + warpgroup * WARPGROUP_M
        # A division by a constant, exact for the few numbers there are.
        token = lax.shift_right_logical(m * math.ceil(2**16 / call.tiling.group), jnp.int32(16))
        tokens = step * BLOCK_S + call.iota((WARPGROUP_M, BLOCK_S), 1)
        seen = is_seen(where.first_position + token, tokens, where.end, window)
        return jnp.where(seen, scores, MASKED)

    def add_step(step: jax.Array, state: _State, *, is_masked: bool) -> _State:
        stage = lax.rem(step - where.first_step, jnp.int32(call.tiling.num_stages))
        v = scratch["v"].at[stage]
        if is_masked:  # before there are scores, which take the registers that this needs
            plgpu.barrier_wait(scratch["v_ready"].at[stage])
            _mask_values(call, where, step, warpgroup, v, scratch["v_masked"])
        plgpu.barrier_wait(scratch["k_ready"].at[stage])
        scores = call.score(call.products(q, scratch["k"].at[stage]))
        plgpu.barrier_arrive(scratch["k_free"].at[stage])
        if is_masked:
            scores = mask(step, scores)
        maximum = jnp.maximum(state.maximum, scores.max(axis=1))
        keep = jnp.exp2(state.maximum - maximum)
        weights = jnp.exp2(scores - lax.broadcast_in_dim(maximum, scores.shape, [0]))
        total = state.total * keep + weights.sum(axis=1)
        if not is_masked:
            plgpu.barrier_wait(scratch["v_ready"].at[stage])
        keep = lax.broadcast_in_dim(keep, state.weighted.shape, [0])
        weighted = call.add_weighted(state.weighted * keep, weights, v)
        plgpu.barrier_arrive(scratch["v_free"].at[stage])
        return _State(maximum, total, weighted)

    state = _State(
        call.full((WARPGROUP_M,), MASKED),
        call.full((WARPGROUP_M,), 0.0),
        call.full((WARPGROUP_M, head_dim), 0.0),
    )
    masked, full = partial(add_step, is_masked=True), partial(add_step, is_masked=False)
    state = lax.fori_loop(where.first_step, where.first_full, masked, state)
    state = lax.fori_loop(where.first_full, where.end_full, full, state)
    return lax.fori_loop(where.end_full, where.end_step, masked, state)


def _mask_values(
    call: _Call, where: Tiles, step: jax.Array, warpgroup: jax.Array, v: Ref, barrier: Ref
) -> None:
    """Overwrites with 0 what stands in v outside of the tile's context, if anything does."""
    first = step * BLOCK_S
    half = BLOCK_S // NUM_COMPUTE

    def mask(index: int) -> Callable[[], None]:
        def overwrite() -> None:
            part = v.at[pl.ds(index * half, half)]
            tokens = first + index * half + call.iota((half, v.shape[1]), 0)
            values = call.laid_out(part[...])
            live = (tokens >= where.oldest) & (tokens < where.end)
            part[...] = jnp.where(live, values, jnp.zeros_like(values))

        return overwrite

    @pl.when((first < where.oldest) | (first + BLOCK_S > where.end))
    def _() -> None:
        for index in range(NUM_COMPUTE):
            pl.when(warpgroup == index)(mask(index))
        plgpu.commit_smem()
        plgpu.barrier_arrive(barrier)
        plgpu.barrier_wait(barrier)
