"""Logits and the choice of tokens: each variant's time, and whether it holds up the host.

What XLA drives from the host makes `choose` wait for all that was started before, so the host
cannot prepare the next step meanwhile. `while` takes loops into CUDA graphs, `no_while` does not;
the runner compiles each variant as it does best (rtpjax.engine.step.choose_options).
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np

from rtpjax.engine.batch import COLUMN
from rtpjax.engine.step import COMMAND_BUFFERS
from rtpjax.engine.wants import VARIANTS
from rtpjax.lab.stage import Lab
from rtpjax.lab.stages.graphs import OPTIONS
from rtpjax.lab.steps import ROWS, Program, Steps
from rtpjax.lab.timing import seconds_each

_WHILE, _NO_WHILE = ({COMMAND_BUFFERS: OPTIONS[name]} for name in ("while", "plain"))
_FILTERED: dict[str, float] = {"temperature": 0.8, "top_p": 0.9}
_ROWS: dict[str, dict[str, float]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "filters": _FILTERED,
    "everything": {**_FILTERED, "repetition_penalty": 1.1},
}


def run(lab: Lab) -> None:
    steps = Steps(lab)
    wanted = lab.pick((ROWS[0], ROWS[-1]), (1,))
    with ThreadPoolExecutor(8) as pool:
        forwards = {n: pool.submit(steps.compile, steps.decode(n)) for n in wanted}
        programs = {
            (n, name, suffix): pool.submit(steps.compile_choose, n, wants, options)
            for n in wanted
            for name, wants in VARIANTS.items()
            for suffix, options in _ways(name).items()
        }
        steps.allocate()
    for (n, name, suffix), program in programs.items():
        with lab.record.attempt(f"choose.{name}{suffix}.{n}"):
            _measure(steps, forwards[n].result(), program.result(), (n, name, suffix))


def _ways(name: str) -> dict[str, dict[str, Any]]:
    """As it is; of variants with loops also with and without them in graphs."""
    has_loops = name in ("filters", "everything")
    return {"": {}} | ({".while": _WHILE, ".no_while": _NO_WHILE} if has_loops else {})


def _measure(steps: Steps, forward: Program, choose: Any, which: tuple[int, str, str]) -> None:
    lab, (n, name, suffix) = steps.lab, which
    vector = steps.vector(steps.decode(n))
    outputs = _wanting(steps.outputs(n), _ROWS[name])
    steps.forward(forward, vector)
    s = seconds_each(partial(steps.choose, choose, outputs), calls=lab.pick(20, 2))
    lab.record.measured(f"choose.{name}{suffix}.{n}", 1e3 * s, "ms", rows=n)
    held = []
    for _ in range(lab.pick(7, 2)):
        steps.forward(forward, vector)
        started = time.perf_counter()
        sampled = steps.choose(choose, outputs)
        held.append(time.perf_counter() - started)
        jax.block_until_ready(sampled)
    seconds = statistics.median(held)
    lab.record.measured(f"choose.held.{name}{suffix}.{n}", 1e3 * seconds, "ms", rows=n)


def _wanting(outputs: np.ndarray, fields: dict[str, float]) -> np.ndarray:
    """The outputs, which want what fields say."""
    for name, value in fields.items():
        outputs[:, COLUMN[name]] = np.float32(value).view(np.int32)
    if "repetition_penalty" in fields:
        outputs[:, [COLUMN["has_penalty"], COLUMN["wants_logprobs"]]] = 1
    return outputs
