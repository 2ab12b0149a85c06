"""`make gpu-check`: compiles kernels and whole steps for GPUs and holds them to a budget.

No GPU is needed; docs/gpu_check.md says what this proves and what it does not.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import os
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rtpjax.engine.wants import VARIANTS
from rtpjax.models import ModelConfig
from rtpjax.plan import presets, topology
from rtpjax.plan.job import ChooseJob, Job, StepJob
from rtpjax.plan.jobs import GPUS, all_jobs, usual_jobs
from rtpjax.plan.workers import Workers

_ROOT = Path(__file__).parents[2]
_NUM_SLOWEST = 5
Compile = Callable[[dict[str, Any]], dict[str, Any]]


def run(
    job: Job, ptxas: str | None, cache: Path, sources: str, compile_job: Compile
) -> dict[str, Any]:
    """A job's result, kept while nothing changes, or `{"error": ...}` if it does not compile.

    Args:
        job: What to compile.
        ptxas: The assembler.
        cache: Folder of results.
        sources: Names what they depend on.
        compile_job: Gives the result of `{"job": ..., "ptxas": ...}`.
    """
    fields = dataclasses.asdict(job)
    key = hashlib.sha256(f"{sources} {json.dumps(fields)} {ptxas is None}".encode()).hexdigest()
    path = cache / f"{key}.json"
    if path.exists():
        return json.loads(path.read_text())
    result = compile_job({"job": fields, "ptxas": ptxas})
    if "error" in result:
        return result  # the machine may have been at fault
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(result))
    unfinished.replace(path)
    return result


# What a step is made of, and what reads it.
_SOURCES = (
    *("pallas_kernels", "rtpjax/models", "rtpjax/gpus", "rtpjax/plan", "rtpjax/sharding.py"),
    *("rtpjax/config.py", "rtpjax/quantized_checkpoint.py"),
    *(f"rtpjax/engine/{name}.py" for name in ("batch", "kv_cache", "sampling", "step", "wants")),
)
# They say what is compiled, judge it, or plan.
_NOT_SOURCES = ("budget", "check", "jobs", "plan", "report", "__main__")


def sources_digest() -> str:
    """Names everything that results depend on: our sources, and the compiler's version."""
    digest = hashlib.sha256()
    paths = [path for name in _SOURCES for path in ((_ROOT / name), *(_ROOT / name).rglob("*"))]
    for path in sorted(paths):
        if path.suffix in (".py", ".json", ".toml") and path.stem not in _NOT_SOURCES:
            digest.update(str(path.relative_to(_ROOT)).encode() + path.read_bytes())
    for name in ("jax", "jaxlib", "flax", *topology.compiler_packages()):
        digest.update(f"{name} {importlib.metadata.version(name)}".encode())
    return digest.hexdigest()


def limits_of(job: Job, budget: dict[str, Any], *, with_exceptions: bool = True) -> dict[str, Any]:
    """What a job's result may have at most, by name; see budget.toml."""
    limits = dict(budget["all"])
    if isinstance(job, StepJob):
        limits |= budget["step"] | budget[job.step]
        if job.step == "decode":
            limits |= budget[f"decode_{job.num_tokens}"]
            moe = ModelConfig.from_hf(presets.load(job.model)).moe
            if moe is not None:
                limits |= budget[
                    "decode_experts_with_biases" if moe.has_biases else "decode_experts"
                ]
    if isinstance(job, ChooseJob):
        limits |= budget["choose"]
    fields = dataclasses.asdict(job)
    for exception in budget.get("exception", []) if with_exceptions else []:
        if exception["for"].items() <= fields.items():
            limits |= exception["limits"]
    return limits


def problems(job: Job, result: dict[str, Any], limits: dict[str, Any]) -> list[str]:
    """What of a result is past its limits."""
    if "error" in result:
        return [result["error"]]
    found = []
    for name, limit in limits.items():
        value = result["temp_bytes"] / (1 << 20) if name == "temp_mib" else result.get(name)
        if name.startswith("least_"):
            name = name.removeprefix("least_")
            found += [
                f"{name}: {n} of {kind}, at least {limit[kind]}"
                for kind, n in result.get(name, {}).items()
                if n < limit.get(kind, 0)
            ]
        elif isinstance(limit, dict):
            found += [
                f"{name}: {n:g} {kind}, at most {limit.get(kind, 0)}"
                for kind, n in (value or {}).items()
                if n > limit.get(kind, 0)
            ]
        elif _size(value) > limit:
            found.append(f"{name} {_shown(value)}, at most {limit}")
    return found


def _size(value: Any) -> float:
    if value is None:
        return 0
    return len(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} ({', '.join(value[:3])}{', ...' if len(value) > 3 else ''})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_HEADER = (
    f"{'what':36} {'gpu':5} {'shape':15} {'bytes':>6} {'krn/l':>6} {'temp MiB':>9} {'alias':>5} "
    f"{'copies':>6} {'regs':>4} {'spill':>5} {'smem':>6} {'tensor':>6} {'coll/l':>6}"
)


def _names(job: Job) -> tuple[str, str]:
    """What the table calls a job, and its shape."""
    if isinstance(job, StepJob):
        return str(job), f"{job.step}[{job.num_tokens}]"
    if isinstance(job, ChooseJob):
        return str(job), f"choose[{job.num_rows}]"
    model, shape = job.case.split(maxsplit=1)
    return f"{job} {model}", shape


def row(job: Job, result: dict[str, Any], mark: str) -> str:
    """A line of the table."""
    what, shape = _names(job)
    start = f"{what:36.36} {job.gpu:5} {shape:15.15} "
    if "error" in result:
        return f"{start}not compiled {mark}"
    if isinstance(job, ChooseJob):
        parts = [
            f"{name} {result[f'{name}_ratio']:.2f} x the logits in "
            f"{result[f'{name}_kernels']} kernels"
            for name in VARIANTS
        ]
        return (
            f"{start}{', '.join(parts)}; {result['temp_bytes'] / (1 << 20):.0f} MiB, "
            f"{len(result['host_waits'])} waits {mark}"
        )

    def cell(value: Any, width: int, form: str = "") -> str:
        return f"{'-' if value is None else format(value, form):>{width}}"

    unaliased = result.get("unaliased")
    collectives = result.get("collectives_per_layer") or {}
    copies = len(result["copied"]) + len(result["gathered"]) if "copied" in result else None
    cells = [
        cell(result.get("ratio"), 6, ".2f"),
        cell(result.get("kernels_per_layer"), 6, ".4g"),
        cell(result["temp_bytes"] / (1 << 20), 9, ".1f"),
        cell(None if unaliased is None else "no" if unaliased else "all", 5),
        cell(copies, 6),
        cell(result["max_registers"], 4),
        cell(result["spill_bytes"], 5),
        cell(result["max_shared_bytes"], 6),
        cell("no" if result["no_tensor_core"] else "yes", 6),
        cell(sum(collectives.values()) or None, 6, "g"),
    ]
    return f"{start}{' '.join(cells)} {mark}"


def find_ptxas() -> str | None:
    """ptxas of the compiler's own generation: of its wheel, or else one on the PATH."""
    try:
        files = importlib.metadata.files(topology.assembler_package()) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = (str(f.locate()) for f in files if f.name == "ptxas")
    return next(found, None) or shutil.which("ptxas")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check; 1 if anything is past its limit."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__)
    parser.add_argument("--gpu", action="append", help="only this GPU (may be repeated)")
    parser.add_argument("--all", action="store_true", help="also what only releases need")
    parser.add_argument("--only", default="", help="only jobs whose name contains this")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/rtpjax/gpu-check"))
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--json", type=Path, help="also write all results to this file")
    args = parser.parse_args(argv)
    problem = topology.compiler_problem()
    if problem is not None:
        print(problem, file=sys.stderr)
        return 2
    listed = all_jobs if args.all else usual_jobs
    jobs = [job for job in listed(args.gpu or GPUS) if args.only in str(job)]
    started = time.perf_counter()
    results = _run_all(jobs, find_ptxas(), args.cache.expanduser(), args.workers)
    if args.json:
        told = [dataclasses.asdict(j) | {"result": r} for j, r in zip(jobs, results, strict=True)]
        args.json.write_text(json.dumps(told, indent=1))
    num_failed = _summarize(jobs, results)
    print_slowest(jobs, results)
    used = os.times()
    print(
        f"{len(jobs)} programs in {time.perf_counter() - started:.0f} s "
        f"({used.children_user + used.children_system:.0f} s of processors), {num_failed} failed."
    )
    return 1 if num_failed or not jobs else 0


def _run_all(
    jobs: Sequence[Job], ptxas: str | None, cache: Path, workers: int
) -> list[dict[str, Any]]:
    """Results in order; lines of the table as they come."""
    budget = read_budget()
    sources = sources_digest()
    print(_HEADER)
    results = []
    compilers = Workers(workers)
    with ThreadPoolExecutor(workers) as pool, contextlib.closing(compilers):
        groups = [list(group) for _, group in itertools.groupby(jobs, group_of)]
        found = pool.map(
            lambda group: [run(j, ptxas, cache, sources, compilers.run) for j in group], groups
        )
        for job, result in zip(jobs, itertools.chain.from_iterable(found), strict=True):
            print(row(job, result, mark_of(job, result, budget)), flush=True)
            results.append(result)
    return results


def read_budget() -> dict[str, Any]:
    """budget.toml."""
    return tomllib.loads((Path(__file__).parent / "budget.toml").read_text())


def mark_of(job: Job, result: dict[str, Any], budget: dict[str, Any]) -> str:
    """FAIL past the limits, * within them by an exception only."""
    if problems(job, result, limits_of(job, budget)):
        return "FAIL"
    return "*" if problems(job, result, limits_of(job, budget, with_exceptions=False)) else ""


def _summarize(jobs: Sequence[Job], results: Sequence[dict[str, Any]]) -> int:
    """Says what is past the limits, and how many need an exception; the number of failures."""
    budget = read_budget()
    failed = num_exceptions = 0
    for job, result in zip(jobs, results, strict=True):
        num_exceptions += mark_of(job, result, budget) == "*"
        found = problems(job, result, limits_of(job, budget))
        if found:
            failed += 1
            print(f"FAIL {dataclasses.astuple(job)}: {'; '.join(found)}")
    print(f"* within the limits by an exception of rtpjax/plan/budget.toml: {num_exceptions}")
    return failed


def group_of(job: Job) -> tuple[str, str, str]:
    """Jobs of one group share most of what they trace: a model, or an implementation, on a GPU."""
    return job.kind, str(job), job.gpu


def print_slowest(jobs: Sequence[Job], results: Sequence[dict[str, Any]]) -> None:
    """Says which programs took most of the processors' time, when they were compiled."""
    timed = [(r["seconds"], j) for j, r in zip(jobs, results, strict=True) if "seconds" in r]
    slowest = sorted(timed, key=lambda pair: pair[0], reverse=True)[:_NUM_SLOWEST]
    shown = [f"{seconds:.0f} {' '.join((*_names(j), j.gpu))}" for seconds, j in slowest]
    print(f"Slowest, seconds of processors: {'; '.join(shown)}")


if __name__ == "__main__":
    sys.exit(main())
