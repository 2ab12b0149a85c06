"""The same decode steps without CUDA graphs, and with loops taken into them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import Steps, rows_of
from rtpjax.lab.timing import seconds_each

_KINDS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL"
OPTIONS = {"off": "", "while": f"{_KINDS},WHILE"}


def run(lab: Lab) -> None:
    steps = Steps(lab)
    wanted = [(n, name) for n in rows_of(lab) for name in OPTIONS]
    with ThreadPoolExecutor(len(wanted)) as pool:
        programs = {
            (n, name): pool.submit(
                steps.compile, steps.decode(n), {"xla_gpu_enable_command_buffer": OPTIONS[name]}
            )
            for n, name in wanted
        }
        steps.allocate()
        for n, name in wanted:
            with lab.record.attempt(f"graphs.{name}.{n}"):
                program, vector = programs[n, name].result(), steps.vector(steps.decode(n))
                s = seconds_each(partial(steps.call, program, vector), calls=lab.pick(50, 2))
                lab.record.measured(f"graphs.{name}.{n}", 1e3 * s, "ms", rows=n)
