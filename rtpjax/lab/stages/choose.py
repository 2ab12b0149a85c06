"""Choosing tokens: each variant's time, and whether it holds up the host while a step is under way.

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
import jax.numpy as jnp
import numpy as np

from rtpjax.engine.batch import RowInputs
from rtpjax.engine.limits import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_BIASES
from rtpjax.engine.sampling import SlotState
from rtpjax.engine.step import COMMAND_BUFFERS
from rtpjax.engine.wants import VARIANTS
from rtpjax.lab.stage import Lab
from rtpjax.lab.stages.graphs import OPTIONS
from rtpjax.lab.steps import ROWS, Steps
from rtpjax.lab.timing import seconds_each
from rtpjax.plan.step import compile_choose

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
            (n, name, suffix): pool.submit(_compile, steps, n, name, options)
            for n in wanted
            for name in VARIANTS
            for suffix, options in _ways(name).items()
        }
        steps.allocate()
    state = _state(steps)
    for (n, name, suffix), program in programs.items():
        with lab.record.attempt(f"choose.{name}{suffix}.{n}"):
            forward = forwards[n].result()
            _measure(steps, forward, program.result(), state, (n, name, suffix))


def _ways(name: str) -> dict[str, dict[str, Any]]:
    """As it is; of variants with loops also with and without them in graphs."""
    has_loops = name in ("filters", "everything")
    return {"": {}} | ({".while": _WHILE, ".no_while": _NO_WHILE} if has_loops else {})


def _compile(steps: Steps, n: int, name: str, options: dict[str, Any]) -> Any:
    shape = steps.shape(steps.decode(n))
    wants = VARIANTS[name]
    return compile_choose(steps.model, n, shape, steps.mesh, wants=wants, options=options)


def _measure(
    steps: Steps, forward: Any, program: Any, state: SlotState, which: tuple[int, str, str]
) -> None:
    lab, (n, name, suffix) = steps.lab, which
    vector = steps.vector(steps.decode(n))
    logits, packed = steps.call(forward, vector)
    rows, no_masks = _rows(packed, _ROWS[name]), jnp.zeros(n, jnp.bool_)

    def choose(logits: jax.Array) -> jax.Array:
        sampled, steps.tokens = program(logits, rows, no_masks, steps.tokens, state)
        return sampled

    s = seconds_each(partial(choose, logits), calls=lab.pick(20, 2))
    lab.record.measured(f"choose.{name}{suffix}.{n}", 1e3 * s, "ms", rows=n)
    held = []
    for _ in range(lab.pick(7, 2)):
        logits, _ = steps.call(forward, vector)
        started = time.perf_counter()
        sampled = choose(logits)
        held.append(time.perf_counter() - started)
        jax.block_until_ready(sampled)
    seconds = statistics.median(held)
    lab.record.measured(f"choose.held.{name}{suffix}.{n}", 1e3 * seconds, "ms", rows=n)


def _rows(packed: jax.Array, fields: dict[str, float]) -> jax.Array:
    """The rows, which want what fields say."""
    rows = np.array(packed)
    for name, value in fields.items():
        rows[:, RowInputs._fields.index(name)] = np.float32(value).view(np.int32)
    if "repetition_penalty" in fields:
        for name in ("has_penalty", "wants_logprobs"):
            rows[:, RowInputs._fields.index(name)] = 1
    return jnp.asarray(rows)


def _state(steps: Steps) -> SlotState:
    """Of slots that ask for nothing; the tokens are apart."""
    slots = steps.max_rows

    def empty(*shape: int, dtype: Any = jnp.int32) -> jax.Array:
        return jnp.zeros((slots, *shape), dtype)

    return SlotState(
        tokens=None,  # type: ignore[arg-type]
        bias_ids=empty(MAX_BIASES),
        bias_values=empty(MAX_BIASES, dtype=jnp.float32),
        bias_until=empty(MAX_BIASES),
        bad_words=empty(MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS),
        masks=empty(-(-steps.model.vocab_size // 32)),
    )
