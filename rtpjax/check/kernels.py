"""Every kernel of the op registry against its plain twin, over the shapes of real models.

An op whose cases are not made here gets random numbers in the shapes that `make gpu-check` compiles
it with (rtpjax/plan/kernel_cases.py): a new op is checked from its first day on.

Each implementation has a process of its own (rtpjax/check/worker.py). All compile side by side, as
many cases at a time as there are cores; one case at a time runs.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Iterator, Sequence

from pallas_kernels.registry import Implementation, Op, Target
from rtpjax.check import cases as check_cases
from rtpjax.check.cases import Case
from rtpjax.check.compare import Job
from rtpjax.check.lanes import run_jobs
from rtpjax.check.results import Result
from rtpjax.errors import ConfigError
from rtpjax.plan import kernel_cases

TWIN = "reference"
GPU_CASE_LIMIT_S, INTERPRETED_CASE_LIMIT_S = 20.0, 600.0
# What a decode step needs most, first; ops that are not named come behind.
_ORDER = (
    "row_matmul",
    "paged_attention",
    "rotate",
    "quantized_write",
    "quantized_matmul",
    "grouped_matmul",
)
_FIRST_MODEL = "llama-3.1-8b"


def known_ops() -> dict[str, Op]:
    """All ops, in the order in which they are checked."""
    ops = kernel_cases.ops()
    names = [name for name in _ORDER if name in ops]
    return {name: ops[name] for name in [*names, *(name for name in ops if name not in names)]}


def known_implementations() -> list[str]:
    """All implementations that can run on a GPU, but the twins."""
    return list(dict.fromkeys(i.name for op in known_ops().values() for i in _checked(op)))


def _checked(op: Op) -> list[Implementation]:
    return [i for i in op.implementations.values() if "gpu" in i.platforms and i.name != TWIN]


def check_kernels(
    target: Target,
    *,
    every_shape: bool = True,
    only: str = "",
    implementations: Collection[str] = (),
    without: Collection[str] = (),
    parallel: int | None = None,
    case_limit_s: float | None = None,
) -> Iterator[Result]:
    """Compares kernels, one result each, as they come; on the CPU in interpret mode.

    The device is used by processes of their own: on a GPU the caller must not hold its memory (set
    XLA_PYTHON_CLIENT_PREALLOCATE=false before it uses JAX). Whatever a case does, the iterator
    raises nothing; closing it ends all processes.

    Args:
        target: The device.
        every_shape: The whole table, not one shape of each kind; on a GPU it always is.
        only: Ops whose name contains this.
        implementations: Only these; all if empty.
        without: Not these.
        parallel: Most compilations at a time; the machine's cores if None.
        case_limit_s: Seconds that a case may take to compile, and again to run; None for 20 on a
            GPU and 600 in interpret mode.

    Raises:
        ConfigError: At once, for a name that no op or implementation has, and for a limit that
            leaves no time.
    """
    ops = {name: op for name, op in known_ops().items() if only in name}
    if not ops:
        raise ConfigError(f"No op's name contains {only!r}; ops: {', '.join(known_ops())}.")
    known = known_implementations()
    for name in [*implementations, *without]:
        if name not in known:
            raise ConfigError(f"No op has an implementation {name!r}; known: {', '.join(known)}.")
    parallel = (os.cpu_count() or 1) if parallel is None else parallel
    is_gpu = target.platform == "gpu"
    if case_limit_s is None:
        case_limit_s = GPU_CASE_LIMIT_S if is_gpu else INTERPRETED_CASE_LIMIT_S
    if parallel < 1 or case_limit_s <= 0:
        raise ConfigError("A case needs at least one thread and more than 0 seconds.")
    wanted = [n for n in implementations or known if n not in without]
    if not wanted:
        raise ConfigError("No implementation is left to be checked.")
    return _check(ops, wanted, target, is_gpu or every_shape, parallel, case_limit_s)


def _check(
    ops: dict[str, Op],
    wanted: Sequence[str],
    target: Target,
    every_shape: bool,
    parallel: int,
    case_limit_s: float,
) -> Iterator[Result]:
    jobs = []
    for op in ops.values():
        cases = cases_of(op, small=not every_shape)
        for implementation in _checked(op):
            if implementation.name not in wanted:
                continue
            if target.platform != "gpu" and not _can_interpret(implementation):
                why = "it runs on a GPU only: it has no interpret mode"
                yield Result(op.name, "", "skipped", why, implementation.name)
                continue
            twin = op.implementations[TWIN]
            jobs += [
                Job(op.name, implementation, twin, case)
                for case in cases
                if not _is_double(implementation, case)
            ]
    yield from run_jobs(jobs, target, parallel=parallel, case_limit_s=case_limit_s)


def _can_interpret(implementation: Implementation) -> bool:
    return "interpret" in inspect.signature(implementation.function).parameters


def _is_double(implementation: Implementation, case: Case) -> bool:
    """Whether another implementation has the same kernel: Mosaic's decodes are those of Pallas."""
    return implementation.name == "mosaic" and case.options.get("decode", False)


def cases_of(op: Op, *, small: bool) -> list[Case]:
    """What an op is checked with: all shapes, or small ones for interpret mode."""
    maker = check_cases.MAKERS.get(op.name)
    if maker is not None:
        cases = list(maker(small))
    else:
        planned = kernel_cases.cases(op.name)
        cases = [
            check_cases.planned(case.name, case.arguments, case.options)
            for case in (planned[:1] if small else planned)
        ]
    return sorted(cases, key=lambda case: _FIRST_MODEL not in case.name.lower())
