"""Greedy decode steps, a prompt's, and one of both: the programs that the server runs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax

from rtpjax.engine.batch import Bucket
from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import Program, Steps, rows_of
from rtpjax.lab.timing import seconds_each
from rtpjax.plan import limits


def run(lab: Lab) -> None:
    steps = Steps(lab)
    started = time.perf_counter()
    decodes = {f"forward.{n}": steps.decode(n) for n in rows_of(lab)}
    # Prompts with each attention that there is for them.
    attentions = ("xla",) if lab.is_small else ("pallas", "mosaic")
    with ThreadPoolExecutor(8) as pool:
        pending = {id: pool.submit(steps.compile, bucket) for id, bucket in decodes.items()}
        for name in attentions:
            named = {"paged_attention": name}
            pending[name] = pool.submit(steps.compile, steps.extend(), named=named)
        steps.allocate()
    # Only when all are compiled: XLA tries out tiles on the GPU meanwhile.
    lab.record.measured("forward.compile", time.perf_counter() - started, "s")
    for id, bucket in decodes.items():
        with lab.record.attempt(id):
            _measure(lab, steps, id, bucket, pending[id].result())
    for name in attentions:
        suffix = "" if name == attentions[0] else f".{name}"
        for id, num_decodes in (("extend", 0), ("mixed", steps.max_rows - 1)):
            with lab.record.attempt(f"{id}{suffix}"):
                program = pending[name].result()
                bucket = steps.extend()
                _measure(lab, steps, f"{id}{suffix}", bucket, program, num_decodes)


def _measure(
    lab: Lab, steps: Steps, id: str, bucket: Bucket, program: Program, num_decodes: int = 0
) -> None:
    vector = steps.vector(bucket, num_decodes=num_decodes)
    jax.block_until_ready(steps.call(program, vector))
    is_decode = bucket.kind == "decode"
    calls = lab.pick(50 if is_decode else 8, 2)
    s = seconds_each(partial(steps.call, program, vector), calls=calls)
    more: dict[str, Any]
    if is_decode:
        n, context = bucket.num_rows, steps.context
        least = steps.gpu and limits.least_tpot_s(steps.needs, steps.gpu, n, context)
        moved = steps.needs.decode_bytes(n, context)
        more = {"rows": n, "context": context, "gb_s": round(moved / s / 1e9, 1)}
    else:
        n = bucket.num_tokens
        least = steps.gpu and limits.least_ttft_s(steps.needs, steps.gpu, n, n)
        flops = steps.needs.prefill_flops(n) / s / 1e12
        more = {"tokens": n, "decodes": num_decodes, "tflop_s": round(flops, 1)}
    lab.record.measured(id, 1e3 * s, "ms", limit=least and 1e3 * least, **more)
