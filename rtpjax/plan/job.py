"""Compilations in a process of their own: a job a line as JSON on stdin, its result on stdout.

Some failures of the GPU compiler abort the process; rtpjax.plan.workers starts it again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels.registry import tracing_for
from rtpjax import gpus
from rtpjax.config import EngineSettings, KvCacheDtype, precision_of
from rtpjax.engine.batch import Bucket
from rtpjax.engine.limits import MAX_NGRAM_TOKENS
from rtpjax.engine.wants import VARIANTS
from rtpjax.gpus import Gpu
from rtpjax.models import ModelConfig
from rtpjax.plan import hlo, kernel_cases, presets, ptx, thunks, topology
from rtpjax.plan.analyze import FEW_LAYERS, analyze
from rtpjax.plan.limits import Needs, needs
from rtpjax.plan.step import StepShape, compile_choose
from rtpjax.quantized_checkpoint import wanted_quantization

CONTEXT_LEN = 1024  # of each row of a decode step
EXTEND_ROWS = 8
MAX_NUM_SEQS = 64


@dataclasses.dataclass(frozen=True)
class StepJob:
    """A step of a preset model."""

    model: str
    gpu: str
    tp_size: int
    step: Literal["decode", "extend"]
    num_tokens: int
    quantization: str | None = None  # of the weights
    cache: KvCacheDtype | None = None
    kind: Literal["step"] = "step"

    def __str__(self) -> str:
        parts = [
            self.model,
            self.quantization,
            f"{self.cache} cache" if self.cache else None,
            f"x{self.tp_size}" if self.tp_size > 1 else None,
        ]
        return " ".join(filter(None, parts))

    def run(self, ptxas: str | None) -> dict[str, Any]:
        """Compiles and reports: the fields of analyze.StepReport, and the ratio of bytes."""
        rows = self.num_tokens if self.step == "decode" else EXTEND_ROWS
        settings = EngineSettings(act_type="BF16", kv_cache_dtype=self.cache)
        precision, gpu = precision_of(settings, "gpu"), gpus.load(self.gpu)
        model = ModelConfig.from_hf(presets.load(self.model))
        wanted = wanted_quantization(model, self.quantization)
        report = analyze(
            dataclasses.replace(model, quantization=wanted),
            precision,
            gpu,
            self.tp_size,
            _shape(
                Bucket(self.step, self.num_tokens, rows),
                _many_pages(needs(model, precision, self.tp_size), gpu),
            ),
            context_len=CONTEXT_LEN,
            ptxas=ptxas,
        )
        return {**dataclasses.asdict(report), "ratio": report.ratio}


@dataclasses.dataclass(frozen=True)
class ChooseJob:
    """The program that makes logits and chooses tokens, which follows a step: for so many rows."""

    model: str
    gpu: str
    num_rows: int
    kind: Literal["choose"] = "choose"

    def __str__(self) -> str:
        return self.model

    def run(self, ptxas: str | None) -> dict[str, Any]:
        """Compiles every variant and counts.

        Of each: bytes beside those of the output matrix, as a multiple of the logits' (where a
        program has conditionals, with every option in use), kernels, CUDA graphs, and launches
        outside of them. Of all: the most temporaries, and where the host waits.
        """
        del ptxas
        gpu, model = gpus.load(self.gpu), ModelConfig.from_hf(presets.load(self.model))
        precision = precision_of(EngineSettings(act_type="BF16"), "gpu")
        head_bytes = needs(model, precision, 1).head_bytes
        shape = _shape(Bucket("decode", self.num_rows, self.num_rows))
        mesh, logits_bytes = topology.make_mesh(gpu, 1), 4 * self.num_rows * model.vocab_size
        result: dict[str, Any] = {"temp_bytes": 0, "host_waits": []}
        for name, wants in VARIANTS.items():
            with tempfile.TemporaryDirectory() as folder:
                dump = {"xla_dump_to": folder}
                compiled = compile_choose(
                    *(model, precision, shape, mesh, gpu),
                    num_outputs=self.num_rows,
                    wants=wants,
                    options=dump,
                )
                module = hlo.parse(compiled.as_text() or "")
                work = thunks.read_dump(Path(folder), module)
            memory: Any = compiled.memory_analysis()
            found = hlo.kernels(module, (MAX_NGRAM_TOKENS,))
            result["temp_bytes"] = max(result["temp_bytes"], memory.temp_size_in_bytes)
            result["host_waits"] += [f"{name} {where}" for where in work.waits]
            result[f"{name}_ratio"] = (hlo.total_bytes(found) - head_bytes) / logits_bytes
            result[f"{name}_kernels"] = hlo.num_launches(found)
            result[f"{name}_graphs"] = work.num_graphs
            result[f"{name}_launches"] = work.num_launches
        return result


def _many_pages(whole: Needs, gpu: Gpu) -> int:
    """Pages with which a few layers have as large a cache as all layers have on a server.

    It takes half of the GPU's memory, which XLA minds, in arrays of over 4 GiB, which kernels
    address with 64 bits.
    """
    one = whole.token_bytes // (2 * len(whole.cache_specs)) * kernel_cases.PAGE_SIZE
    fewer, more = FEW_LAYERS
    return 1 + max(2**32 // (fewer * one), gpu.memory_bytes // 2 // (2 * more * one))


def _shape(bucket: Bucket, num_pages: int = kernel_cases.NUM_PAGES) -> StepShape:
    return StepShape(
        bucket=bucket,
        max_model_len=kernel_cases.MAX_MODEL_LEN,
        page_size=kernel_cases.PAGE_SIZE,
        num_pages=num_pages,
        max_num_seqs=MAX_NUM_SEQS,
    )


@dataclasses.dataclass(frozen=True)
class KernelJob:
    """One implementation of an op, with one of its shapes."""

    op: str
    implementation: str
    case: str
    gpu: str
    kind: Literal["kernel"] = "kernel"

    def __str__(self) -> str:
        return f"{self.op}/{self.implementation}"

    def run(self, ptxas: str | None) -> dict[str, Any]:
        """Compiles and reports what its kernels need."""
        gpu = gpus.load(self.gpu)
        case = next(c for c in kernel_cases.cases(self.op) if c.name == self.case)
        function = kernel_cases.ops()[self.op].implementations[self.implementation].function
        where = NamedSharding(topology.make_mesh(gpu, 1), PartitionSpec())
        arguments = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), case.arguments
        )
        with tempfile.TemporaryDirectory() as folder:
            # Mosaic GPU does not write to XLA's folder by itself.
            os.environ.update(MOSAIC_GPU_DUMP_PTX="1", MOSAIC_GPU_DUMP_TO=folder)
            with tracing_for(gpu.target):
                lowered = jax.jit(lambda *a: function(*a, **case.options)).lower(*arguments)
            compiled = lowered.compile(ptx.dump_options(folder))
            resources = ptx.read_dump(Path(folder), gpu.ptx_target, ptxas)
        module = hlo.parse(compiled.as_text() or "")
        memory: Any = compiled.memory_analysis()
        registers = [r.registers for r in resources if r.registers is not None]
        return {
            "temp_bytes": memory.temp_size_in_bytes,
            "no_tensor_core": ptx.without_tensor_core(hlo.products(module), resources),
            "library_calls": sorted(set(hlo.library_calls(module))),
            "max_registers": max(registers, default=None),
            "spill_bytes": sum(r.spill_bytes or 0 for r in resources) if registers else None,
            "buffers_in_flight": ptx.buffers_in_flight(resources),
            "max_shared_bytes": max((r.shared_bytes for r in resources), default=0),
        }


Job = StepJob | ChooseJob | KernelJob
_KINDS = {"step": StepJob, "choose": ChooseJob, "kernel": KernelJob}


def from_json(text: str) -> Job:
    """A job from its JSON, whose `kind` says which."""
    fields = json.loads(text)
    return _KINDS[fields["kind"]](**fields)


def main() -> None:
    """Runs each `{"job": ..., "ptxas": ...}` of stdin."""
    gpu = None
    for line in sys.stdin:
        request = json.loads(line)
        job = from_json(json.dumps(request["job"]))
        if job.gpu != gpu:
            jax.clear_caches()  # what was traced for one GPU must not be found by the next
        gpu, before = job.gpu, _processor_seconds()
        result = job.run(request["ptxas"])
        result["seconds"] = round(_processor_seconds() - before, 2)
        print(json.dumps(result), flush=True)


def _processor_seconds() -> float:
    """Of this process and those that it has started."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
