"""The stages: what each tells, in the order of worth; a file each beside this one has its `run`.

The table imports none of them: the driver needs no JAX, and a package that one stage lacks is that
stage's fault alone.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Literal

from rtpjax.lab.stage import Lab


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the lab, in a process of its own.

    Attributes:
        limit_s: Seconds that it may take.
        what: What it tells, in a few words.
        uses: What has the GPU: jax, which must find it then; torch, without which the stage is left
            out; `any` looks at what there is, or has processes that do.
        environment: Variables of its process, and of those that it starts.
    """

    limit_s: float
    what: str
    uses: Literal["jax", "torch", "any"] = "jax"
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


# What comes later may be cut off.
STAGES: dict[str, Stage] = {
    "facts": Stage(45, "the machine, its GPU and versions", uses="any"),
    "ceilings": Stage(60, "bandwidth, L2, launches and products at their best"),
    "kernels": Stage(
        100,
        "every kernel against its plain twin",
        environment={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # its processes share the memory
    ),
    "forward": Stage(150, "decode steps at 1, 8 and 64 rows, and a prompt"),
    "trace": Stage(90, "what each kernel of a decode step takes"),
    "choose": Stage(60, "choosing tokens: its time, and whether it holds up the host"),
    "tilings": Stage(60, "products at 64 rows with old and new tilings, and XLA's"),
    "cublas": Stage(45, "the same products by cuBLAS", uses="torch"),
    "engine": Stage(120, "whole steps of the engine, prompts, sampling"),
    "peer": Stage(90, "the same model in torch and transformers", uses="torch"),
    "decode_attention": Stage(60, "decode attention, uniform and skewed"),
    "prefill_attention": Stage(90, "prefill attention beside cuDNN"),
    "graphs": Stage(120, "decode steps without CUDA graphs, and with WHILE"),
    "server": Stage(180, "a server under 1, 16 and 64 clients", uses="any"),
    "quantized": Stage(90, "products with int8, fp8 and int4 weights"),
    "moe": Stage(60, "a layer of experts, with and without a loop"),
}


def run_of(name: str) -> Callable[[Lab], None]:
    """A stage's function. Its module imports JAX, but starts no device."""
    return importlib.import_module(f"{__name__}.{name}").run
