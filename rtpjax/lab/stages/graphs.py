"""The same decode steps without CUDA graphs, and with loops taken into them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rtpjax.engine.step import COMMAND_BUFFERS
from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import ROWS, Steps
from rtpjax.lab.timing import seconds_each

_KINDS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL"
OPTIONS = {"off": "", "plain": _KINDS, "while": f"{_KINDS},WHILE"}


def run(lab: Lab) -> None:
    steps = Steps(lab)
    wanted = [(n, name) for n in lab.pick(ROWS, (1,)) for name in ("off", "while")]
    with ThreadPoolExecutor(len(wanted)) as pool:
        programs = {
            (n, name): pool.submit(steps.compile, steps.decode(n), {COMMAND_BUFFERS: OPTIONS[name]})
            for n, name in wanted
        }
        steps.allocate()
    for n, name in wanted:
        with lab.record.attempt(f"graphs.{name}.{n}"):
            program, vector = programs[n, name].result(), steps.vector(steps.decode(n))
            s = seconds_each(partial(steps.call, program, vector), calls=lab.pick(50, 2))
            lab.record.measured(f"graphs.{name}.{n}", 1e3 * s, "ms", rows=n)
