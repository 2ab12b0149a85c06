"""What a model needs on a GPU, what fits, and the limits that the hardware sets."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

from rtpjax import config, gpus
from rtpjax.config import EngineConfig, EngineSettings
from rtpjax.engine.batch import Bucket
from rtpjax.engine.cache_groups import most_live_pages, pages_for
from rtpjax.engine.runner import buckets_of
from rtpjax.errors import ConfigError
from rtpjax.gpus import Gpu
from rtpjax.models import ModelConfig
from rtpjax.plan import topology
from rtpjax.plan.analyze import StepReport, analyze
from rtpjax.plan.limits import Needs, least_tpot_s, least_ttft_s, needs
from rtpjax.plan.step import StepShape, compile_choose
from rtpjax.quantized_checkpoint import wanted_quantization

# The part of a GPU's memory that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
MEMORY_FRACTION = 0.75
_MOST_GPUS = 8  # in one machine


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
        gpu: The GPU.
        needs: The model's demands on one of them.
        free_bytes: Memory for cache and temporaries on each.
        reserved_bytes: Of that, what is left to temporaries.
        engine: Resolved settings, None if they cannot be met ...
        problem: ... and why.
        instead: Settings that fit, if those asked for do not.
        steps: Largest decode and extend step; a text where it could not be compiled.
        choose_bytes: Temporaries of the program that chooses the tokens of most rows; 0 where it
            was not compiled.
    """

    gpu: Gpu
    needs: Needs
    free_bytes: int
    reserved_bytes: int
    engine: EngineConfig | None
    problem: str | None
    instead: list[str]
    steps: dict[str, StepReport | str]
    choose_bytes: int = 0


def make_plan(
    model: ModelConfig,
    gpu: Gpu,
    settings: EngineSettings,
    *,
    memory_fraction: float = MEMORY_FRACTION,
    compile_steps: bool = True,
) -> Plan:
    """Plans a model on GPUs that need not be there.

    Args:
        model: Its shape.
        gpu: Which GPU.
        settings: As for the server; tp_size says how many.
        memory_fraction: Part of the memory that the server may use.
        compile_steps: Whether to ask the GPU compiler, where it is installed.

    Raises:
        ConfigError: tp_size does not divide the model's heads, the GPU cannot compute with a cache
            of that format, or the model cannot be quantized so.
    """
    config.check_cache_dtype(settings, gpu.target)
    kept = _kept(model, settings)
    whole = needs(kept, config.precision_of(settings, "gpu"), settings.tp_size)
    free = int(gpu.memory_bytes * memory_fraction) - whole.weights_bytes
    engine, problem, steps, instead, choose_bytes = None, None, {}, [], 0
    try:
        engine = _resolve(whole, settings, free)
    except ConfigError as error:
        problem = str(error)
        instead = list(what_fits(model, gpu, settings, memory_fraction))
    if engine is not None:
        steps = _steps(gpu, engine, whole, compile_steps)
        if any(isinstance(step, StepReport) for step in steps.values()):
            choose_bytes = _choose_bytes(gpu, engine, whole)
        problem = _past_reserve(steps, choose_bytes, settings.reserved_bytes)
    reserved = settings.reserved_bytes
    return Plan(gpu, whole, free, reserved, engine, problem, instead, steps, choose_bytes)


def _kept(model: ModelConfig, settings: EngineSettings) -> ModelConfig:
    """The model in the formats that GPUs keep its matrices in: all that can be wanted."""
    wanted = wanted_quantization(model, settings.quantization)
    return dataclasses.replace(model, quantization=wanted)


def _resolve(whole: Needs, settings: EngineSettings, free_bytes: int) -> EngineConfig:
    if free_bytes <= 0:
        raise ConfigError(
            f"The weights take {whole.weights_bytes / config.GIB:.1f} GiB on each GPU, "
            f"{-free_bytes / config.GIB:.1f} GiB more than there are."
        )
    return config.resolve(
        settings, whole.model, whole.cache_specs, platform="gpu", free_bytes=free_bytes
    )


@contextlib.contextmanager
def quiet_config() -> Iterator[None]:
    """What a server logs while it settles its configuration is not said."""
    logger = logging.getLogger(config.__name__)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def what_fits(
    model: ModelConfig, gpu: Gpu, settings: EngineSettings, memory_fraction: float
) -> Iterator[str]:
    """The smallest changes to settings, one at a time, with which the model fits."""

    def fits(gpu: Gpu, changed: EngineSettings) -> EngineConfig | None:
        try:
            with quiet_config():
                precision = config.precision_of(changed, "gpu")
                whole = needs(_kept(model, changed), precision, changed.tp_size)
                free = int(gpu.memory_bytes * memory_fraction) - whole.weights_bytes
                return _resolve(whole, changed, free)
        except ConfigError:
            return None

    shorter = fits(gpu, dataclasses.replace(settings, max_model_len=None))
    if shorter is not None:
        yield f"--max-model-len {shorter.max_model_len}"
    for tp_size in range(settings.tp_size + 1, _MOST_GPUS + 1):
        if fits(gpu, dataclasses.replace(settings, tp_size=tp_size)) is not None:
            yield f"--tp {tp_size}"
            break
    for other in sorted(map(gpus.load, gpus.names()), key=lambda g: g.memory_bytes):
        if other.memory_bytes > gpu.memory_bytes and fits(other, settings) is not None:
            yield f"--gpu {other.name}"
            break


def _steps(
    gpu: Gpu, engine: EngineConfig, whole: Needs, compile_steps: bool
) -> dict[str, StepReport | str]:
    if not compile_steps:
        return dict.fromkeys(("decode", "extend"), "not asked for")
    missing = topology.compiler_problem()
    if missing is not None:
        return dict.fromkeys(("decode", "extend"), missing)
    largest = {bucket.kind: bucket for bucket in buckets_of(engine, "gpu")}
    return {kind: _step(gpu, engine, whole, b) for kind, b in largest.items()}


def _step(gpu: Gpu, engine: EngineConfig, whole: Needs, bucket: Bucket) -> StepReport | str:
    context_len = min(engine.max_model_len, 1024)
    try:
        return analyze(
            *(whole.model, whole.precision, gpu, whole.tp_size, _shape(engine, bucket)),
            context_len=context_len,
        )
    except RuntimeError as error:  # what XLA raises: the program cannot be had on this GPU
        return f"does not compile: {str(error)[:500]}"


def _choose_bytes(gpu: Gpu, engine: EngineConfig, whole: Needs) -> int:
    rows = engine.max_num_seqs
    shape = _shape(engine, Bucket("decode", rows, rows))
    mesh = topology.make_mesh(gpu, whole.tp_size, whole.model)
    compiled = compile_choose(whole.model, whole.precision, shape, mesh, gpu, num_outputs=rows)
    memory: Any = compiled.memory_analysis()
    return memory.temp_size_in_bytes


def _shape(engine: EngineConfig, bucket: Bucket) -> StepShape:
    return StepShape(
        *(bucket, engine.max_model_len, engine.page_size, engine.num_pages, engine.max_num_seqs),
        max_num_batched_tokens=max(engine.max_num_batched_tokens, bucket.num_tokens),
    )


def _past_reserve(
    steps: dict[str, StepReport | str], choose_bytes: int, reserved_bytes: int
) -> str | None:
    reports = [report for report in steps.values() if isinstance(report, StepReport)]
    most = max((choose_bytes, *(report.temp_bytes for report in reports)))
    if most <= reserved_bytes:
        return next((r for r in steps.values() if str(r).startswith("does not compile")), None)  # type: ignore[return-value]
    return (
        f"A step's temporaries take {most / config.MIB:.0f} MiB, and "
        f"{reserved_bytes / config.MIB:.0f} MiB are reserved for them. Set --reserved-mib (the "
        f"server's RESERVER_RUNTIME_MEM_MB) to {-(-most // config.MIB)}, or lower "
        "--max-num-batched-tokens or --max-num-seqs."
    )


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan for scripts; bytes and seconds."""
    whole, engine = plan.needs, plan.engine
    found: dict[str, Any] = {
        "gpu": plan.gpu.name,
        "tp_size": whole.tp_size,
        "fits": plan.problem is None,
        "problem": plan.problem,
        "instead": plan.instead,
        "memory_per_gpu": {
            "total_bytes": plan.gpu.memory_bytes,
            "weights_bytes": whole.weights_bytes,
            "reserved_bytes": plan.reserved_bytes,
            "cache_bytes_per_token": whole.token_bytes,
        },
        "compiled": {
            kind: report
            if isinstance(report, str)
            else dataclasses.asdict(report) | {"ratio": report.ratio}
            for kind, report in plan.steps.items()
        },
    }
    if engine is not None:
        cache_bytes = whole.cache_bytes(engine.cache_groups, engine.page_size)
        found["memory_per_gpu"]["cache_bytes"] = cache_bytes
        found |= {
            "max_model_len": engine.max_model_len,
            "max_num_seqs": engine.max_num_seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens,
            "page_size": engine.page_size,
            "cache_tokens": (engine.num_pages - 1) * engine.page_size,
            "cache_groups": [
                {"window": g.window, "tokens": (g.num_pages - 1) * engine.page_size}
                for g in engine.cache_groups
            ],
            "requests": requests(engine),
            "limits": limits(plan.gpu, whole, engine),
        }
    return found


def requests(engine: EngineConfig) -> list[dict[str, int]]:
    """How many requests of a length fit at once."""

    def fitting(num_tokens: int) -> int:
        needed = pages_for(num_tokens, engine.page_size)
        return min(
            int(
                (group.num_pages - 1)
                // min(needed, most_live_pages(group.window, engine.page_size, 1))
            )
            for group in engine.cache_groups
        )

    return [
        {"tokens": n, "requests": min(fitting(n), engine.max_num_seqs)}
        for n in _lengths(engine.max_model_len)
    ]


def limits(gpu: Gpu, whole: Needs, engine: EngineConfig) -> dict[str, list[dict[str, float]]]:
    """Least TPOT by rows and context that fit together, and least TTFT by length of the prompt."""
    tpot = [
        {"rows": rows, "context": n, "tpot_s": least_tpot_s(whole, gpu, rows, n)}
        for n, fitting in ((r["tokens"], r["requests"]) for r in requests(engine))
        for rows in (1, 8, 64, 256)
        if rows <= fitting
    ]
    ttft = [
        {
            "prompt": n,
            "ttft_s": least_ttft_s(whole, gpu, n, engine.max_num_batched_tokens),
        }
        for n in _lengths(engine.max_model_len)
    ]
    return {"tpot": tpot, "ttft": ttft}


def _lengths(longest: int) -> list[int]:
    return [*(n for n in (1024, 4096, 16384, 65536) if n < longest), longest]
