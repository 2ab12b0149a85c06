"""Compiles a step, up to its hidden states, for a GPU and says what came out, in numbers.

A budget can be set on them (rtpjax/plan/budget.toml).

A few layers are compiled, and the rest is extrapolated: all layers of one kind are alike, so what a
step moves and launches is linear in their number (tests/rtpjax/plan/test_analyze.py holds it to
that).
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from rtpjax.gpus import Gpu
from rtpjax.models import Caches, ModelConfig, Precision
from rtpjax.plan import hlo, ptx, thunks, topology
from rtpjax.plan.limits import Needs, needs
from rtpjax.plan.step import StepShape, argument_names, caches_of, compile_step

FEW_LAYERS = (2, 4)
# How the `xla` attention loops: so many rows, and so many tokens of context, at a time.
_LOOP_ROWS, _LOOP_TOKENS = 16, 64


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What a compiled step is like, per device.

    Attributes:
        temp_bytes: Temporaries.
        argument_bytes: Weights, cache and inputs.
        moved_bytes: Bytes that a decode step reads and writes; None for an extend step, whose loops
            depend on its rows.
        least_bytes: What it cannot do without; None likewise.
        kernels_per_layer: Launches, loops counted as often as they run; None likewise.
        collectives_per_layer: By kind.
        collectives_beside: Those of no layer (the embedding's), by kind.
        unaliased: Cache arrays that the step does not update in place.
        copied: Weights and caches that are copied before they are used.
        gathered: Weights that the devices send to each other.
        library_calls: Products that a vendor's library computes, by name.
        no_tensor_core: Products and attention kernels without tensor-core instructions.
        max_registers: Of a kernel; None without ptxas.
        spill_bytes: Of all kernels; None without ptxas.
        spilling: Their names.
        buffers_in_flight: By kernel, tiles that its main loop has in shared memory at once.
        max_shared_bytes: Of a kernel.
        host_waits: Conditionals and loops for which the host waits for the device.
        graphs: CUDA graphs that the host launches for the FEW_LAYERS that are compiled.
        launches: What it launches outside of them, likewise.
    """

    temp_bytes: int
    argument_bytes: int
    moved_bytes: int | None
    least_bytes: int | None
    kernels_per_layer: float | None
    collectives_per_layer: dict[str, float]
    collectives_beside: dict[str, float]
    unaliased: list[str]
    copied: list[str]
    gathered: list[str]
    library_calls: list[str]
    no_tensor_core: list[str]
    max_registers: int | None
    spill_bytes: int | None
    spilling: list[str]
    buffers_in_flight: dict[str, int]
    max_shared_bytes: int
    host_waits: list[str]
    graphs: int
    launches: int

    @property
    def ratio(self) -> float | None:
        """Bytes moved against the least possible."""
        if self.moved_bytes is None or self.least_bytes is None:
            return None
        return self.moved_bytes / self.least_bytes


@dataclasses.dataclass(frozen=True)
class Counts:
    """A compiled step of few layers, or what follows from two of them for more."""

    num_layers: int
    temp_bytes: float
    argument_bytes: float
    moved_bytes: float
    launches: float
    collectives: dict[str, float]

    def per_layer(self, other: Counts) -> Counts:
        """The difference that one layer makes, from this to a program of more layers."""
        more = other.num_layers - self.num_layers
        kinds = self.collectives.keys() | other.collectives.keys()
        return Counts(
            1,
            (other.temp_bytes - self.temp_bytes) / more,
            (other.argument_bytes - self.argument_bytes) / more,
            (other.moved_bytes - self.moved_bytes) / more,
            (other.launches - self.launches) / more,
            {k: (other.collectives.get(k, 0) - self.collectives.get(k, 0)) / more for k in kinds},
        )


def analyze(
    model: ModelConfig,
    precision: Precision,
    gpu: Gpu,
    tp_size: int,
    shape: StepShape,
    *,
    context_len: int,
    ptxas: str | None = None,
) -> StepReport:
    """Compiles a step for a GPU that need not be there.

    Args:
        model: Its shape; only FEW_LAYERS of it are compiled.
        precision: Number formats.
        gpu: What to compile for.
        tp_size: Over how many of them.
        shape: The step's shape.
        context_len: Tokens of each row's context, for the bytes of a decode step.
        ptxas: The assembler, for registers and spills.

    Raises:
        Exception: Whatever the compiler raises; it may also end the process.
    """
    mesh = topology.make_mesh(gpu, tp_size, model)
    whole = needs(model, precision, tp_size)
    fewer, more = (model.with_layers(min(n, model.num_hidden_layers)) for n in FEW_LAYERS)
    few_caches, caches = (caches_of(m, precision, shape, mesh) for m in (fewer, more))
    with tempfile.TemporaryDirectory() as folder:
        # The larger program comes first, and leaves its kernels to the smaller one.
        options = {"xla_gpu_kernel_cache_file": f"{folder}/kernels"}
        dump = ptx.dump_options(f"{folder}/dump")
        compiled = compile_step(more, precision, shape, mesh, gpu, options | dump)
        resources = ptx.read_dump(Path(folder, "dump"), gpu.ptx_target, ptxas)
        module = hlo.parse(compiled.as_text() or "")
        work = thunks.read_dump(Path(folder, "dump"), module)
        smaller = compile_step(fewer, precision, shape, mesh, gpu, options)
    counts = (
        _count(smaller, hlo.parse(smaller.as_text() or ""), few_caches, whole, shape, context_len),
        _count(compiled, module, caches, whole, shape, context_len),
    )
    names = argument_names(more, precision, len(caches.arrays))
    return _report(model, whole, shape, context_len, counts, module, names, resources, work)


def _count(
    compiled: jax.stages.Compiled,
    module: hlo.Module,
    caches: Caches,
    whole: Needs,
    shape: StepShape,
    context_len: int,
) -> Counts:
    memory: Any = compiled.memory_analysis()
    pools = pools_of(whole, caches, shape, context_len)
    found = hlo.kernels(module, loop_trips(shape, context_len), pools)
    return Counts(
        len(caches.layout.places),
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        hlo.total_bytes(found),
        hlo.num_launches(found),
        dict(hlo.collectives(found)),
    )


def loop_trips(shape: StepShape, context_len: int) -> tuple[int, ...]:
    """How often the loops of the `xla` attention run in a decode step; once each in another."""
    if shape.bucket.kind == "extend":
        return 1, 1, 1
    return math.ceil(shape.bucket.num_rows / _LOOP_ROWS), math.ceil(context_len / _LOOP_TOKENS)


def pools_of(
    whole: Needs, caches: Caches, shape: StepShape, context_len: int
) -> tuple[hlo.Pool, ...]:
    """The caches' arrays on one device, of which a kernel touches what is one layer's."""
    one, page_size = 2 * len(whole.cache_specs), shape.page_size
    token, rows = whole.token_bytes // one, shape.bucket.num_rows
    live = whole.live_bytes(context_len) // one
    num_open = min(rows, shape.bucket.num_tokens)  # of several pages a row fills all but one anew
    scale = whole.page_bytes(page_size) // one - page_size * token
    num_live = rows * math.ceil(live / (page_size * token))
    pages = _shard_sizes(cache.k_pages for cache in caches.arrays)
    scales = _shard_sizes(cache.k_scales for cache in caches.arrays)
    return (
        *(hlo.Pool(size, rows * live, num_open * page_size * token) for size in pages),
        *(hlo.Pool(size, num_live * scale, num_open * scale) for size in scales),
    )


def _shard_sizes(arrays: Iterable[Any]) -> set[int]:
    """Bytes of the parts of arrays, or shapes, that one device has."""
    return {
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in arrays
        if x is not None
    }


def _report(
    model: ModelConfig,
    whole: Needs,
    shape: StepShape,
    context_len: int,
    counts: Sequence[Counts],
    module: hlo.Module,
    names: Sequence[str],
    resources: Sequence[ptx.Resources],
    work: thunks.HostWork,
) -> StepReport:
    first, second = counts
    layer = first.per_layer(second)
    rest = model.num_hidden_layers - second.num_layers
    is_decode = shape.bucket.kind == "decode"
    registers = [r.registers for r in resources if r.registers is not None]
    return StepReport(
        temp_bytes=round(second.temp_bytes + rest * max(layer.temp_bytes, 0)),
        argument_bytes=round(second.argument_bytes + rest * layer.argument_bytes),
        moved_bytes=round(second.moved_bytes + rest * layer.moved_bytes) if is_decode else None,
        least_bytes=(
            whole.forward_bytes(shape.bucket.num_rows, context_len) if is_decode else None
        ),
        kernels_per_layer=layer.launches if is_decode else None,
        collectives_per_layer={k: n for k, n in layer.collectives.items() if n},
        collectives_beside=_beside(second, layer),
        unaliased=[
            n for i, n in enumerate(names) if n.startswith("caches") and i not in module.aliased
        ],
        copied=[names[i] for i in hlo.copied_parameters(module)],
        gathered=[names[i] for i in hlo.gathered_parameters(module)],
        library_calls=sorted(Counter(hlo.library_calls(module))),
        no_tensor_core=ptx.without_tensor_core(hlo.products(module), resources),
        max_registers=max(registers, default=None),
        spill_bytes=sum(r.spill_bytes or 0 for r in resources) if registers else None,
        spilling=[r.name for r in resources if r.spill_bytes],
        buffers_in_flight=ptx.buffers_in_flight(resources),
        max_shared_bytes=max((r.shared_bytes for r in resources), default=0),
        host_waits=list(work.waits),
        graphs=work.num_graphs,
        launches=work.num_launches,
    )


def _beside(counts: Counts, layer: Counts) -> dict[str, float]:
    """Collectives that are left when those of the layers are taken away."""
    left = {
        k: n - counts.num_layers * layer.collectives.get(k, 0)
        for k, n in counts.collectives.items()
    }
    return {k: n for k, n in left.items() if n}
