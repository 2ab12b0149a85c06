"""Decode steps up to the logits, and a prompt's: the programs that the server runs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rtpjax.engine.batch import Bucket
from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import Steps, rows_of
from rtpjax.lab.timing import seconds_each
from rtpjax.plan import limits


def run(lab: Lab) -> None:
    steps = Steps(lab)
    started = time.perf_counter()
    buckets = {f"forward.{n}": steps.decode(n) for n in rows_of(lab)}
    buckets["extend"] = steps.extend()
    with ThreadPoolExecutor(len(buckets)) as pool:
        programs = {id: pool.submit(steps.compile, bucket) for id, bucket in buckets.items()}
        steps.allocate()
        for id, bucket in buckets.items():
            with lab.record.attempt(id):
                program = programs[id].result()
                if id == next(iter(buckets)):
                    lab.record.measured("forward.compile", time.perf_counter() - started, "s")
                _measure(lab, steps, id, bucket, program)


def _measure(lab: Lab, steps: Steps, id: str, bucket: Bucket, program: object) -> None:
    vector = steps.vector(bucket)
    s = seconds_each(partial(steps.call, program, vector), calls=lab.pick(50, 2))
    if bucket.kind == "decode":
        n, context = bucket.num_rows, steps.context
        least = steps.gpu and limits.least_tpot_s(steps.needs, steps.gpu, n, context)
        moved = steps.needs.decode_bytes(n, context)
        more = {"rows": n, "context": context, "gb_s": round(moved / s / 1e9, 1)}
    else:
        n = bucket.num_tokens
        least = steps.gpu and limits.least_ttft_s(steps.needs, steps.gpu, n, n)
        more = {"tokens": n, "tflop_s": round(steps.needs.prefill_flops(n) / s / 1e12, 1)}
    lab.record.measured(id, 1e3 * s, "ms", limit=least and 1e3 * least, **more)
