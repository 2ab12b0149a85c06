"""The engine itself: whole steps with the host's part, prompts, and what sampling costs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from rtpjax.config import GIB, MIB, EngineSettings
from rtpjax.dummy_checkpoint import DummyCheckpoint
from rtpjax.engine.engine import LLMEngine
from rtpjax.engine.load import load_engine
from rtpjax.engine.request import SamplingParams
from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import PAGE_SIZE, Steps, rows_of
from rtpjax.plan import limits
from rtpjax.tokenizer import load_tokenizer

_STEPS = 64
_SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8, "seed": 1},
    "top_p": {"temperature": 0.8, "seed": 1, "top_p": 0.9, "top_k": 50},
    "logprobs": {"temperature": 0.0, "logprobs": 5},
}


def run(lab: Lab) -> None:
    steps = Steps(lab)
    started = time.perf_counter()
    settings = EngineSettings(
        act_type="BF16",
        max_model_len=steps.max_model_len,
        page_size=PAGE_SIZE,
        max_num_seqs=steps.max_rows,
        max_num_batched_tokens=steps.num_extended,
        kv_cache_bytes=lab.pick(12 * GIB, 64 * MIB),
    )
    checkpoint: Any = DummyCheckpoint.open(lab.model)
    tokenizer = load_tokenizer(lab.model)
    engine = load_engine(checkpoint, tokenizer, (), settings, show_progress=False)
    lab.record.measured("engine.start", time.perf_counter() - started, "s")
    rng = np.random.default_rng(0)
    for n in rows_of(lab):
        with lab.record.attempt(f"engine.{n}"):
            prompt = steps.context - lab.pick(_STEPS, 16) // 2
            timings, before = engine.timings, (engine.timings.host_s, engine.timings.num_steps)
            s = _step_s(steps, engine, rng, (n, prompt), _SAMPLING["greedy"])
            host = (timings.host_s - before[0]) / (timings.num_steps - before[1])
            least = steps.gpu and limits.least_tpot_s(steps.needs, steps.gpu, n, steps.context)
            more = {"rows": n, "host_ms": round(1e3 * host, 3), "tok_s": round(n / s, 1)}
            lab.record.measured(f"engine.{n}", 1e3 * s, "ms", limit=least and 1e3 * least, **more)
    for count, length in lab.pick(((1, 2000), (16, 1000)), ((2, 32),)):
        with lab.record.attempt(f"engine.prompts.{count}x{length}"):
            sampling = SamplingParams(max_tokens=1, ignore_eos=True, temperature=0.0)
            prompts = [_prompts(steps, rng, count, length) for _ in range(2)]
            engine.generate(prompts[0], sampling)
            started = time.perf_counter()
            engine.generate(prompts[1], sampling)
            s = time.perf_counter() - started
            flops = count * steps.needs.prefill_flops(length) / s / 1e12
            id = f"engine.prompts.{count}x{length}"
            lab.record.measured(id, count * length / s, "tok/s", tflop_s=round(flops, 1))
    for name, how in _SAMPLING.items():
        for n in (rows_of(lab)[0], rows_of(lab)[-1]):
            with lab.record.attempt(f"engine.sampling.{name}.{n}"):
                s = _step_s(steps, engine, rng, (n, lab.pick(32, 4)), how)
                lab.record.measured(f"engine.sampling.{name}.{n}", 1e3 * s, "ms", rows=n)


def _prompts(steps: Steps, rng: Any, count: int, length: int) -> list[list[int]]:
    return rng.integers(0, steps.model.vocab_size // 2, (count, length)).tolist()


def _step_s(
    steps: Steps, engine: LLMEngine, rng: Any, shape: tuple[int, int], how: dict[str, Any]
) -> float:
    """Seconds of a decode step: long answers less short ones, so that prompts cancel out."""
    prompts, more = _prompts(steps, rng, *shape), steps.lab.pick(_STEPS, 4)

    def seconds(max_tokens: int) -> float:
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **how)
        started = time.perf_counter()
        engine.generate(prompts, sampling)
        return time.perf_counter() - started

    seconds(1)  # from here on the prompts' pages are shared with what ran before
    return (seconds(2 + more) - seconds(2)) / more
