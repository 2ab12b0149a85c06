"""What `make gpu-check` compiles: steps of models, the choice of tokens, and kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Literal

from rtpjax import gpus as gpu_data
from rtpjax.config import KvCacheDtype
from rtpjax.plan import kernel_cases
from rtpjax.plan.job import ChooseJob, Job, KernelJob, StepJob

GPUS = ("a100", "l4", "h100", "b200")
Step = tuple[Literal["decode", "extend"], int]
ALL_STEPS: tuple[Step, ...] = (("decode", 1), ("decode", 8), ("decode", 64), ("extend", 512))
QUANTIZED_STEPS = ALL_STEPS[1:]


@dataclasses.dataclass(frozen=True)
class Steps:
    """Steps of a model on some GPUs; StepJob documents the other fields.

    Attributes:
        gpus: What all_jobs has.
        usual: Those of them that usual_jobs has.
    """

    model: str
    gpus: tuple[str, ...] = GPUS
    usual: tuple[str, ...] = GPUS
    tp_size: int = 1
    steps: tuple[Step, ...] = ALL_STEPS
    quantization: str | None = None
    cache: KvCacheDtype | None = None

    def jobs(self, gpus: Collection[str]) -> Iterator[StepJob]:
        """Those on some GPUs; the steps of one GPU follow each other."""
        for gpu in (gpu for gpu in self.gpus if gpu in gpus):
            for step, n in self.steps:
                yield StepJob(self.model, gpu, self.tp_size, step, n, self.quantization, self.cache)


STEPS = (
    Steps("smollm2-135m", usual=("l4", "h100")),
    Steps("qwen2.5-0.5b", usual=("a100", "b200")),
    Steps("llama-3.1-8b"),
    Steps("llama-3.1-8b", usual=("h100",), steps=QUANTIZED_STEPS, quantization="int8"),
    Steps("llama-3.1-8b", ("h100",), steps=QUANTIZED_STEPS, quantization="int4"),
    Steps("llama-3.1-8b", ("h100",), steps=QUANTIZED_STEPS, quantization="fp8"),
    Steps("llama-3.1-8b", ("a100", "h100"), ("a100",), steps=QUANTIZED_STEPS, cache="int8"),
    Steps("llama-3.1-8b", ("h100", "b200"), ("b200",), steps=QUANTIZED_STEPS, cache="fp8"),
    Steps("qwen3-8b", usual=("h100",)),
    Steps("qwen3-32b", usual=("h100",), tp_size=4),
    Steps("qwen3-30b-a3b", ("h100",), steps=(("decode", 8), ("decode", 64))),
    Steps("gpt-oss-20b", ("h100",), steps=(("decode", 8),)),
    Steps("gpt-oss-20b", ("h100",), (), steps=(("decode", 64), ("extend", 512))),
    Steps("gemma-3-27b", ("h100",), steps=(("decode", 8),)),
    Steps("gemma-3-27b", ("h100",), (), steps=(("extend", 512),)),
    Steps("glm-4.5-air", ("h100",), (), tp_size=8, steps=(("decode", 8), ("extend", 512))),
    Steps("mixtral-8x7b", ("h100",), (), tp_size=4, steps=(("decode", 8),)),
    Steps("llama-3.1-70b", ("h100",), (), tp_size=8),
    Steps("qwen2.5-72b", ("a100",), tp_size=8),
    Steps("qwen2.5-72b", ("a100",), (), tp_size=4, steps=QUANTIZED_STEPS, quantization="int8"),
)
# Two architectures of one kind: the same instructions but for fp8, which the second has.
_SAME_KIND = {"l4": "a100"}


def all_jobs(gpus: Collection[str] = GPUS) -> list[Job]:
    """All on these GPUs; jobs that trace the same follow each other."""
    steps = [job for steps in STEPS for job in steps.jobs(gpus)]
    choices = [ChooseJob("llama-3.1-8b", gpu, 64) for gpu in gpus]
    return [*steps, *choices, *_kernels(gpus)]


def usual_jobs(gpus: Collection[str] = GPUS) -> list[Job]:
    """What each commit is checked with; the rest of all_jobs is for nightly runs and releases.

    The steps are those of Steps.usual. A kernel's shape that two architectures of one kind take is
    compiled for one of them, but for the first shape of each implementation.
    """
    rarely = {job for s in STEPS for job in s.jobs(gpus) if job.gpu not in s.usual}
    jobs = [job for job in all_jobs(gpus) if job not in rarely]
    present = set(jobs)
    firsts: dict[tuple[str, str, str], Job] = {}
    for job in jobs:
        if isinstance(job, KernelJob):
            firsts.setdefault((job.op, job.implementation, job.gpu), job)

    def is_repeated(job: Job) -> bool:
        if not isinstance(job, KernelJob) or job.gpu not in _SAME_KIND:
            return False
        twin = dataclasses.replace(job, gpu=_SAME_KIND[job.gpu])
        return twin in present and job not in firsts.values()

    return [job for job in jobs if not is_repeated(job)]


def _kernels(gpus: Collection[str]) -> Iterator[KernelJob]:
    """Our own kernels with every shape that they take; what XLA makes of an op with the first."""
    for op in kernel_cases.ops().values():
        for implementation in op.implementations.values():
            if "gpu" not in implementation.platforms or implementation.name == "reference":
                continue
            cases = kernel_cases.cases(op.name)[: 1 if implementation.name == "xla" else None]
            for gpu in gpus:
                for case in cases:
                    if kernel_cases.is_supported(implementation, case, gpu_data.load(gpu)):
                        yield KernelJob(op.name, implementation.name, case.name, gpu)
