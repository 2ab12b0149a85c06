"""Compilations in a process of their own: a job a line as JSON on stdin, its result on stdout.

Some failures of the GPU compiler abort the process; rtpjax.plan.workers starts it again.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import NamedSharding, PartitionSpec

from rtpjax import gpus
from rtpjax.engine.batch import Bucket
from rtpjax.models import ModelConfig, Precision
from rtpjax.plan import hlo, kernel_cases, presets, ptx, topology
from rtpjax.plan.analyze import analyze
from rtpjax.plan.step import StepShape

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
    kind: Literal["step"] = "step"

    def __str__(self) -> str:
        return f"{self.model}{f' x{self.tp_size}' if self.tp_size > 1 else ''}"

    def run(self, ptxas: str | None) -> dict[str, Any]:
        """Compiles and reports: the fields of analyze.StepReport, and the ratio of bytes."""
        rows = self.num_tokens if self.step == "decode" else EXTEND_ROWS
        shape = StepShape(
            bucket=Bucket(self.step, self.num_tokens, rows),
            max_model_len=kernel_cases.MAX_MODEL_LEN,
            page_size=kernel_cases.PAGE_SIZE,
            num_pages=kernel_cases.NUM_PAGES,
            max_num_seqs=MAX_NUM_SEQS,
        )
        report = analyze(
            ModelConfig.from_hf(presets.load(self.model)),
            Precision.of("BF16", "gpu"),
            gpus.load(self.gpu),
            self.tp_size,
            shape,
            context_len=CONTEXT_LEN,
            ptxas=ptxas,
        )
        return {**dataclasses.asdict(report), "ratio": report.ratio}


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
            lowered = jax.jit(lambda *a: function(*a, **case.options)).lower(*arguments)
            compiled = lowered.compile({"xla_dump_to": folder})
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
            "max_shared_bytes": max((r.shared_bytes for r in resources), default=0),
        }


Job = StepJob | KernelJob


def from_json(text: str) -> Job:
    """A job from its JSON, whose `kind` says which."""
    fields = json.loads(text)
    return StepJob(**fields) if fields["kind"] == "step" else KernelJob(**fields)


def main() -> None:
    """Runs each `{"job": ..., "ptxas": ...}` of stdin."""
    for line in sys.stdin:
        request = json.loads(line)
        result = from_json(json.dumps(request["job"])).run(request["ptxas"])
        print(json.dumps(result), flush=True)
        jax.clear_caches()  # what was traced for one GPU must not be found by the next


if __name__ == "__main__":
    main()
