"""Quantized caches after random lives of sequences, against a twin in numpy and the true values."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pallas_kernels.paged_attention import as_float32
from pallas_kernels.registry import Target, tracing_for
from rtpjax.models import PagedCache, StepInputs, cache_write
from rtpjax.models.cache import LayerCache

PAGE, K, H, PAGES = 8, 2, 16, 14
F8 = ml_dtypes.float8_e4m3fn
DTYPES = {"int8": (np.int8, 127.0), "fp8": (F8, 448.0), "fp8 in uint8": (F8, 448.0)}
ROWS, TOKENS = 14, 36


@dataclass
class Twin:
    """One array of pages, written by loops: each page's true values, scale and numbers."""

    dtype: type
    largest: float
    pages: np.ndarray
    scales: np.ndarray
    errors: np.ndarray  # bound of what rounding did so far, by page and head

    @staticmethod
    def start(dtype, largest) -> Twin:
        """Everything is garbage: NaN where the format has it."""
        pages = np.full((PAGES, PAGE, K, H), 127 if dtype is np.int8 else np.nan).astype(dtype)
        return Twin(dtype, largest, pages, np.full((PAGES, K), np.nan, np.float32),
                    np.full((PAGES, K), np.nan))  # fmt: skip

    def write(self, rows: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Rows of slots `[n]` and values `[n, K, H]`."""
        slots = np.concatenate([s for s, _ in rows])
        values = np.concatenate([v for _, v in rows])
        for page in np.unique(slots // PAGE):
            here = slots // PAGE == page
            is_begun = (slots[here] % PAGE == 0).any()
            first = (slots[here] % PAGE).min()
            for head in range(K):
                x = values[here, head]
                self._fit(page, head, 0.0 if is_begun else self.scales[page, head], first, x)
                scaled = x / (self.scales[page, head] or np.float32(1))
                self.pages[page, slots[here] % PAGE, head] = self._round(scaled)

    def _fit(self, page, head, old, first, x) -> None:
        needed = np.abs(x).max() / np.float32(self.largest)
        new = old
        if needed > old and self.dtype is np.int8:
            new = max(needed, np.float32(1.25) * old)
        elif needed > old:
            new = np.float32(2.0 ** np.ceil(np.log2(needed)))
        error = self.errors[page, head] if old else 0.0
        if new > old > 0:
            held = self.pages[page, :first, head].astype(np.float32) * (old / new)
            self.pages[page, :first, head] = self._round(held)
        if new > old:
            error += new / 2  # int8: half a step; float8: half of the smallest one is less
        self.scales[page, head], self.errors[page, head] = new, error

    def _round(self, x):
        if self.dtype is np.int8:
            x = np.rint(x)
        return np.clip(x, -self.largest, self.largest).astype(self.dtype)


@dataclass
class Sequence:
    pages: list[int] = field(default_factory=list)
    truth: list[np.ndarray] = field(default_factory=list)  # [K, H] of each token


@functools.partial(jax.jit, donate_argnums=0)
def written(cache, k, v, slots, query_start):
    return write(cache, k, v, slots, query_start, "extend")


def write(cache, k, v, slots, query_start, kind):
    T, B = slots.size, query_start.size - 1
    step = StepInputs(
        positions=jnp.zeros(T, jnp.int32),
        slots=slots[None],
        page_tables=jnp.zeros((1, B, 1), jnp.int32),
        query_start=query_start,
        context_lens=jnp.zeros(B, jnp.int32),
        kind=kind,
    )
    return cache_write.write(LayerCache(cache, step.page_tables[0], slots), k, v, step)


class Life:
    """Sequences that begin, grow by chunks or single tokens, and are freed."""

    def __init__(self, format_name: str, seed: int):
        self.rng = np.random.default_rng(seed)
        dtype, largest = DTYPES[format_name]
        self.twins = [Twin.start(dtype, largest) for _ in range(2)]
        pages, scales = self.twins[0].pages, self.twins[0].scales
        pages = pages.view(np.uint8) if format_name == "fp8 in uint8" else pages
        self.cache = PagedCache(*(jnp.array(x) for x in (pages, pages, scales, scales)))
        self.free = list(range(1, PAGES))
        self.sequences: list[Sequence] = []

    def step(self) -> None:
        rng = self.rng
        if self.sequences and (rng.random() < 0.15 or len(self.free) < 5):
            self.free += self.sequences.pop(rng.integers(len(self.sequences))).pages
        if len(self.sequences) < 3:
            self.sequences.append(Sequence())
        rows = []
        for sequence in self.sequences:
            is_decode = sequence.truth and rng.random() < 0.6
            rows += self._rows(sequence, 1 if is_decode else int(rng.integers(1, 12)))
        self._write(rows)

    def _rows(self, sequence, count):
        """New tokens; now and then as rows of one token, as prompts that are scored come."""
        start = len(sequence.truth)
        count = min(count, PAGE * (len(sequence.pages) + len(self.free)) - start)
        while len(sequence.pages) * PAGE < start + count:
            sequence.pages.append(self.free.pop(self.rng.integers(len(self.free))))
        # Sizes differ by a thousand, so that scales grow in small and large steps, and zeros.
        size = 10.0 ** self.rng.uniform(-2, 1, (count, 1, 1)) * self.rng.choice([0, 1, 1, 1])
        values = (self.rng.standard_normal((count, K, H)) * size).astype(np.float32)
        at = start + np.arange(count)
        slots = np.asarray(sequence.pages)[at // PAGE] * PAGE + at % PAGE
        sequence.truth += list(values)
        cuts = np.arange(1, count) if count <= 4 else []
        return list(zip(np.split(slots, cuts), np.split(values, cuts), strict=True))

    def _write(self, rows) -> None:
        counts = [len(slots) for slots, _ in rows]
        starts = np.cumsum([0, *counts])
        starts = np.append(starts, np.full(ROWS - len(rows), starts[-1]))
        slots = np.zeros(TOKENS, np.int32)
        values = np.full((TOKENS, K, H), 7.5, np.float32)  # of padding
        slots[: starts[-1]] = np.concatenate([s for s, _ in rows])
        values[: starts[-1]] = np.concatenate([v for _, v in rows])
        self.cache = written(
            self.cache,
            jnp.asarray(values),
            jnp.asarray(-3 * values),
            jnp.asarray(slots),
            jnp.asarray(starts, jnp.int32),
        )
        self.twins[0].write(rows)
        self.twins[1].write([(s, -3 * v) for s, v in rows])

    def check(self) -> None:
        arrays = (
            (self.cache.k_pages, self.cache.k_scales),
            (self.cache.v_pages, self.cache.v_scales),
        )
        for twin, (pages, scales), factor in zip(self.twins, arrays, (1, -3), strict=True):
            pages, scales = np.asarray(as_float32(pages)), np.asarray(scales)
            for sequence in self.sequences:
                at = np.arange(len(sequence.truth))
                page, offset = np.asarray(sequence.pages, int)[at // PAGE], at % PAGE
                np.testing.assert_allclose(scales[page], twin.scales[page], rtol=1e-6)
                held, want = pages[page, offset], twin.pages[page, offset].astype(np.float32)
                # A product that falls between two numbers may be rounded to either.
                assert (held != want).mean() < 0.01
                truth = factor * np.asarray(sequence.truth)
                error = np.abs(held * scales[page][:, :, None] - truth)
                assert np.isfinite(error).all()
                bound = twin.errors[page][:, :, None] * 1.001
                if twin.dtype is not np.int8:
                    bound = bound * 2.0**-9 + np.abs(truth) / 16
                assert (error <= bound).all()
                assert (twin.errors[page] <= 2.5 * twin.scales[page] + 1e-9).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("format_name", DTYPES)
def test_what_sequences_have_in_the_cache_is_true_within_rounding(format_name, seed):
    life = Life(format_name, seed)
    for _ in range(60):
        life.step()
        life.check()


def cache_of(dtype, pages=3) -> PagedCache:
    shape = (pages, PAGE, K, H)
    values = [jnp.zeros(shape, dtype) for _ in range(2)]
    return PagedCache(*values, *(jnp.full((pages, K), 9.0) for _ in range(2)))


def put(cache, slots, values) -> PagedCache:
    values = jnp.broadcast_to(jnp.asarray(values, jnp.float32)[:, None, None], (len(slots), K, H))
    starts = jnp.asarray([0, len(slots)], jnp.int32)
    return written(cache, values, values, jnp.asarray(slots, jnp.int32), starts)


def test_a_page_that_is_begun_forgets_the_scale_of_who_had_it():
    cache = put(cache_of(jnp.int8), [8, 9], [0.5, -1.0])
    np.testing.assert_allclose(cache.k_scales, np.array([[9, 9], [1 / 127] * 2, [9, 9]]), rtol=1e-6)
    np.testing.assert_array_equal(cache.k_pages[1, :2, 0, 0], [64, -127])


def test_a_scale_that_grows_grows_by_a_quarter_and_what_was_there_keeps_its_value():
    cache = put(put(cache_of(jnp.int8), [8], [1.0]), [9], [1.01])
    np.testing.assert_allclose(cache.k_scales[1], 1.25 / 127, rtol=1e-6)
    np.testing.assert_array_equal(
        cache.k_pages[1, :2, 1, 3], [102, 103]
    )  # 127 / 1.25, 128.3 / 1.25
    cache = put(cache, [10], [12.7])
    np.testing.assert_allclose(cache.v_scales[1], 0.1, rtol=1e-6)
    np.testing.assert_array_equal(cache.v_pages[1, :3, 0, 0], [10, 10, 127])


def test_float8_scales_are_powers_of_two_and_nothing_overflows():
    cache = put(cache_of(jnp.float8_e4m3fn), [8, 9], [1.1, 3e38])
    assert np.log2(np.asarray(cache.k_scales[1])) % 1 == pytest.approx(0)
    assert np.isfinite(np.asarray(as_float32(cache.k_pages))).all()
    # 7 * 2 ** n in units of a power of two is a number of the format, and stays it.
    cache = put(put(cache_of(jnp.float8_e4m3fn), [8], [7.0]), [9], [7.0 * 1024])
    held = cache.k_pages[1, :2, 0, 0].astype(jnp.float32) * cache.k_scales[1, 0]
    np.testing.assert_array_equal(held, [7.0, 7.0 * 1024])


def test_zeros_are_zeros():
    cache = put(cache_of(jnp.int8), [8, 9], [0.0, 0.0])
    assert not np.asarray(cache.k_scales[1]).any()
    assert not np.asarray(cache.k_pages[1]).any()


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.float32])
def test_the_write_is_in_place_and_needs_no_memory_of_the_caches_size(dtype):
    shape, tokens = (4096, 32, 4, 64), 16
    pages = jax.ShapeDtypeStruct(shape, dtype)
    has_scales = cache_write.has_scales(dtype)
    scales = jax.ShapeDtypeStruct((4096, 4), jnp.float32) if has_scales else None
    cache = PagedCache(pages, pages, scales, scales)
    new = jax.ShapeDtypeStruct((tokens, 4, 64), jnp.float32)
    slots = jax.ShapeDtypeStruct((tokens,), jnp.int32)
    starts = jax.ShapeDtypeStruct((tokens + 1,), jnp.int32)
    memory = written.lower(cache, new, new, slots, starts).compile().memory_analysis()
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes == size
    # The pages of 16 rows in float32, a few times over.
    assert memory.temp_size_in_bytes < 4 * tokens * 32 * 4 * 64 * 4 < size / 10


def kernels(dtype, kind, target) -> int:
    """How many kernels of our own a write is."""
    cache = cache_of(dtype) if cache_write.has_scales(dtype) else cache_of(dtype)[:2]
    new, slots, starts = jnp.ones((3, K, H)), jnp.zeros(3, jnp.int32), jnp.arange(4)
    with tracing_for(target):
        call = functools.partial(write, kind=kind)
        return str(jax.make_jaxpr(call)(PagedCache(*cache), new, new, slots, starts)).count(
            "pallas_call["
        )


def test_where_a_kernel_writes_it():
    h100, a100 = Target("gpu", 90), Target("gpu", 80)
    assert kernels(jnp.int8, "decode", h100) == kernels(jnp.float8_e4m3fn, "decode", h100) == 1
    assert kernels(jnp.int8, "decode", a100) == 1
    assert kernels(jnp.float8_e4m3fn, "decode", a100) == 0
    assert kernels(jnp.int8, "extend", h100) == kernels(jnp.bfloat16, "decode", h100) == 0
    assert kernels(jnp.int8, "decode", Target("cpu")) == 0
