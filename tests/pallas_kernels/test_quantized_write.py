"""The write of a quantized cache against a loop in numpy, with poison in all that no row has."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh

from pallas_kernels import quantized_write as op
from pallas_kernels.registry import Target, UnsupportedError, tracing_for
from pallas_kernels.sharded import MeshAxes, sharded_quantized_write

F8 = ml_dtypes.float8_e4m3fn
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}


@dataclasses.dataclass(frozen=True)
class Case:
    """A decode step: for each row, what its page holds and what comes.

    Attributes:
        offsets: Where the row's new token goes in its page; None for padding, several for a
            sequence that has several rows.
        sizes: Largest number of a row's new tokens; pages hold numbers of up to 1.
    """

    offsets: list[int | list[int] | None]
    sizes: list[float]
    page_size: int = 16
    heads: tuple[int, int] = (2, 16)
    dtype: str = "int8"
    new_dtype: str = "bfloat16"


class Step:
    """Arrays of a case in numpy, rows in random order, pages scrambled."""

    def __init__(self, case: Case):
        self.case = case
        rng = np.random.default_rng(0)
        dtype = np.dtype(case.dtype) if case.dtype == "int8" else np.dtype(F8)
        K, H = case.heads
        num_pages = 2 * len(case.offsets) + 2
        free = list(rng.permutation(np.arange(1, num_pages)))
        poison = 127 if case.dtype == "int8" else np.nan
        self.pages = [np.full((num_pages, case.page_size, K, H), poison, dtype) for _ in range(2)]
        self.scales = [np.full((num_pages, K), np.nan, np.float32) for _ in range(2)]
        rows: list[tuple[int, float]] = []
        for offsets, size in zip(case.offsets, case.sizes, strict=True):
            page = free.pop()
            several = offsets if isinstance(offsets, list) else [offsets]
            for o in several:
                rows.append((0 if o is None else page * case.page_size + o, size))
            if several[0]:
                self._fill(rng, page, min(several))
        order = rng.permutation(len(rows))
        self.slots = np.asarray([rows[i][0] for i in order], np.int32)
        sizes = np.asarray([rows[i][1] for i in order])
        values = (rng.uniform(-1, 1, (len(rows), K, H)) * sizes[:, None, None] for _ in range(2))
        self.values = [np.asarray(jnp.asarray(x, case.new_dtype)) for x in values]

    def _fill(self, rng: np.random.Generator, page: int, count: int) -> None:
        largest = LARGEST[self.case.dtype]
        for pages, scales in zip(self.pages, self.scales, strict=True):
            numbers = rng.uniform(-largest, largest, (count, *self.case.heads))
            rounded = np.rint(numbers) if self.case.dtype == "int8" else numbers
            pages[page, :count] = rounded.astype(pages.dtype)
            scales[page] = 1 / largest if self.case.dtype == "int8" else 2.0**-9

    @property
    def operands(self) -> op.Operands:
        starts = np.arange(len(self.slots) + 1, dtype=np.int32)
        arrays = *self.pages, *self.scales, *self.values, self.slots, starts
        return op.Operands(*(jnp.asarray(x) for x in arrays))

    def expected(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Pages and scales after the step, by loops over pages, heads and tokens."""
        pages, scales = [x.copy() for x in self.pages], [x.copy() for x in self.scales]
        for i in range(2):
            for page in set(self.slots // self.case.page_size) - {0}:
                here = np.flatnonzero(self.slots // self.case.page_size == page)
                for head in range(self.case.heads[0]):
                    new = self.values[i][here, head].astype(np.float32)
                    at = self.slots[here] % self.case.page_size
                    scales[i][page, head] = self._write_head(
                        pages[i][page, :, head], scales[i][page, head], at, new
                    )
        return pages, scales

    def _write_head(self, held, scale, at, new) -> float:
        """held `[page_size, H]` in place; the scale."""
        first, most, largest = at.min(), np.abs(new).max(), LARGEST[self.case.dtype]
        before = scale if first else 0.0
        now = before
        if self.case.dtype == "int8" and most / largest > before * (1 + 1e-6):
            now = max(most / largest, 1.25 * before)
        elif self.case.dtype != "int8" and most > largest * before:
            now = 2.0 ** np.ceil(np.log2(most / largest))
        now = np.float32(now)
        if now > before > 0:
            held[:first] = self._round(held[:first].astype(np.float32) * (before / now))
        for offset, value in zip(at, new, strict=True):
            held[offset] = self._round(value / (now or np.float32(1)))
        return now

    def _round(self, x: np.ndarray) -> np.ndarray:
        x = np.clip(x, -LARGEST[self.case.dtype], LARGEST[self.case.dtype])
        return np.rint(x).astype(np.int8) if self.case.dtype == "int8" else x.astype(F8)

    def check(self, written: op.Written) -> None:
        """Everything but page 0, and what no row has is bit for bit what it was."""
        pages, scales = self.expected()
        for i in range(2):
            got = np.asarray(written[i])[1:]
            want, was = pages[i][1:], self.pages[i][1:]
            assert got.dtype == want.dtype
            is_new = want.view(np.uint8) != was.view(np.uint8)
            np.testing.assert_array_equal(got.view(np.uint8)[~is_new], was.view(np.uint8)[~is_new])
            # A product that falls between two numbers may be rounded to either.
            got, want = got[is_new].astype(np.float32), want[is_new].astype(np.float32)
            off = got != want
            assert off.sum() <= 0.02 * off.size
            np.testing.assert_allclose(got, want, atol=1 if self.case.dtype == "int8" else 2**-9,
                                       rtol=0.13)  # fmt: skip
            np.testing.assert_allclose(np.asarray(written[2 + i])[1:], scales[i][1:], rtol=1e-6)


SMALL, LARGE = 0.5, 7.0
CASES = {
    "pages begin, stay, and grow": Case(
        [0, 0, 1, 7, 15, 1, 7, 15, 3, 0, 4],
        [SMALL, LARGE, *3 * [SMALL], *3 * [LARGE], 1.01, 0, 0],
    ),
    "one of many": Case([None, 5, None, 9, 0, None, 15], [9, SMALL, 9, LARGE, SMALL, 9, 1e4]),
    "rows of one sequence": Case([[4, 5, 6], 2, [0, 1], [15]], [LARGE, LARGE, SMALL, SMALL]),
    "pages of one token": Case([0, None, 0], [SMALL, 9, LARGE], page_size=1),
    "pages of 128": Case([127, 64, 63, 0], [LARGE] * 4, page_size=128, heads=(1, 64)),
    "heads of 80": Case([15, 3], [LARGE, SMALL], heads=(3, 80)),
    "heads of 96": Case([15, 3], [LARGE, SMALL], heads=(1, 96)),
    "heads of 256": Case([60, 3], [LARGE, SMALL], page_size=64, heads=(1, 256)),
    "float16": Case([15, 3, 0], [LARGE, SMALL, 1e3], heads=(1, 128), new_dtype="float16"),
    "float32": Case([15, 3, 0], [LARGE, SMALL, 3e38], new_dtype="float32"),
}


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_writes_what_a_loop_writes(name, dtype):
    step = Step(dataclasses.replace(CASES[name], dtype=dtype))
    step.check(jax.jit(partial(op.pallas, interpret=True))(step.operands))


def without_what_follows(step: Step, written: op.Written) -> op.Written:
    """XLA's twins scale what stands behind a page's last token too, which nothing reads."""
    pages = [np.array(x) for x in written[:2]]
    expected, _ = step.expected()
    for page in set(step.slots // step.case.page_size):
        last = (step.slots[step.slots // step.case.page_size == page] % step.case.page_size).max()
        for got, want in zip(pages, expected, strict=True):
            got[page, last + 1 :] = want[page, last + 1 :]
    return (*pages, *written[2:])


def test_one_program_writes_a_page_and_none_writes_that_of_padding(monkeypatch):
    """Programs run one after another here, where two of one page would do no harm."""

    def count(self, tokens, is_interpreted):
        self.scales[self.page, self.head] = self.scales[self.page, self.head] + 1

    monkeypatch.setattr(op._Head, "write", count)
    step = Step(Case([[4, 5, 6], None, 2, [0, 1], None], [1.0] * 5))
    step.scales = [np.zeros_like(x) for x in step.scales]
    _, _, *counts = op.pallas(step.operands, interpret=True)
    pages = set(step.slots // step.case.page_size) - {0}
    assert len(pages) == 3
    for got in counts:
        is_written = np.isin(np.arange(len(got)), list(pages))
        np.testing.assert_array_equal(got, np.repeat(is_written[:, None], 2, axis=1))


@pytest.mark.parametrize("twin", [op.xla, op.reference], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("name", ["pages begin, stay, and grow", "rows of one sequence", "float32"])
def test_the_twins_write_what_a_loop_writes(name, dtype, twin):
    step = Step(dataclasses.replace(CASES[name], dtype=dtype))
    step.check(without_what_follows(step, jax.jit(twin)(step.operands)))


def test_halves_are_rounded_to_even():
    numbers = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -126.5, 0.49999997, -3e38, 0], np.float32)
    got = op._narrowed(jnp.asarray(numbers), jnp.int8)
    np.testing.assert_array_equal(got, [0, 2, 2, 0, -2, 126, -126, 0, -127, 0])


@pytest.mark.parametrize("most", [448, 449, 1, 1.7500001, 3e38, 2.0**-20, 0])
def test_float8_scales_are_the_least_power_of_two_that_does(most):
    most = np.float32(most)
    scale = np.asarray(op._grown(jnp.asarray(most), jnp.float32(0), jnp.float8_e4m3fn))
    largest = 448 * np.float64(scale)
    assert most <= largest and (most == 0 or most > largest / 2)
    assert scale == 0 or np.log2(scale) % 1 == 0
    assert op._grown(jnp.asarray(most), jnp.asarray(scale), jnp.float8_e4m3fn) == scale


@pytest.mark.parametrize("dtype", LARGEST)
def test_heads_over_four_devices(dtype):
    mesh = MeshAxes(Mesh(np.asarray(jax.devices()[:4]), ("tp",)), ("tp",), ("tp",))
    step = Step(dataclasses.replace(CASES["one of many"], dtype=dtype, heads=(4, 16)))

    def write(operands: op.Operands) -> op.Written:
        assert operands.k.shape[1] == operands.k_scales.shape[1] == 1
        return op.pallas(operands, interpret=True)

    step.check(jax.jit(partial(sharded_quantized_write, mesh, write=write))(step.operands))


def shapes(*, tokens=8, head_dim=64, cache="int8", new="bfloat16", pages=32, **changed):
    """A call's arguments, some of them changed."""

    def array(*shape, dtype):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    both = array(pages, 16, 2, head_dim, dtype=cache)
    scales, values = array(pages, 2, dtype="float32"), array(tokens, 2, head_dim, dtype=new)
    slots, starts = array(tokens, dtype="int32"), array(tokens + 1, dtype="int32")
    return op.Operands(both, both, scales, scales, values, values, slots, starts)._replace(
        **{name: array(*shape, dtype=dtype) for name, (shape, dtype) in changed.items()}
    )


@pytest.mark.parametrize(
    ("capability", "arguments", "message"),
    [
        (75, {}, "compute capability 75 .* 80 and later"),
        (80, {"cache": "float8_e4m3fn"}, "float8_e4m3fn cache on compute capability 80 .*89 on"),
        (90, {"head_dim": 640}, "head_dim 640 .* up to 512"),
        (90, {"tokens": 2048}, "a step of 2048 tokens .* up to 1024"),
        (90, {"new": "int8"}, "k of int8 .* bfloat16"),
        (90, {"cache": "uint8"}, "a cache of uint8 .* int8, float8_e4m3fn"),
        (90, {"pages": 2**21, "head_dim": 128}, "cache of 8589934592 elements.* change the number"),
    ],
    ids=str,
)
def test_what_xla_does_instead(capability, arguments, message, caplog):
    operands = shapes(**arguments)
    if arguments.get("pages"):  # of 4 GiB and more 64-bit numbers are used
        operands = shapes(pages=2**20 - 1, head_dim=128)
        message = "cache of 4294963200 elements.* change the number"
    with tracing_for(Target("gpu", capability)):
        with pytest.raises(UnsupportedError, match=f"^quantized_write: .*{message}.* xla instead"):
            op.OP.choose("pallas", operands)
        op.OP._warned.clear()
        assert op.OP.choose(None, operands).name == "xla"
    assert len(caplog.records) == 1


def test_who_writes_where():
    for capability, cache in ((80, "int8"), (89, "float8_e4m3fn"), (90, "int8"), (100, "int8")):
        with tracing_for(Target("gpu", capability)):
            assert op.OP.choose(None, shapes(cache=cache)).name == "pallas"
    assert op.OP.choose(None, shapes()).name == "xla"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cache": "bfloat16"}, "a cache of bfloat16 has no scales"),
        ({"v_pages": ((32, 16, 2, 64), "float8_e4m3fn")}, r"v_pages is float8_e4m3fn.*int8 \[32"),
        ({"k_scales": ((32, 4), "float32")}, r"k_scales is float32\[32, 4\]; .*\[32, 2\]"),
        ({"v_scales": ((32, 2), "bfloat16")}, r"v_scales is bfloat16\[32, 2\]; .*float32"),
        ({"k": ((8, 4, 64), "bfloat16")}, r"k is bfloat16\[8, 4, 64\]; expected \[T, 2, 64\]"),
        ({"v": ((8, 2, 64), "float16")}, r"v is float16\[8, 2, 64\]; expected bfloat16 \[8"),
        ({"slots": ((9,), "int32")}, r"slots is int32\[9\]; expected int32 \[8\]"),
        ({"query_start": ((9,), "int16")}, r"query_start is int16\[9\]; expected int32"),
    ],
    ids=str,
)
def test_arguments_that_do_not_belong_together(changed, message):
    with pytest.raises(ValueError, match=f"^quantized_write: .*{message}") as error:
        op.OP.choose(None, shapes(**changed))
    assert not isinstance(error.value, UnsupportedError)
