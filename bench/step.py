"""`bench step`: one decode step of a model with quantized weights beside plain ones.

The compiled programs are the runner's (rtpjax.engine.step), with weights of no meaning, greedy rows
and empty contexts, so what it takes is weights, norms and the output matrix, and hardly any
attention. Formats take turns, and of each turn's two steps the faster counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.model import add_model, find_model
from bench.report import busy_share, table, write_json
from checkpoints_conv.readers import open_checkpoint
from rtpjax.engine import seats
from rtpjax.engine.batch import Bucket, empty_outputs
from rtpjax.engine.step import Model
from rtpjax.engine.wants import NOTHING
from rtpjax.models import ModelConfig, Precision, abstract_state
from rtpjax.models.quantization import METHODS, UNQUANTIZED, kept_on, quantization_of
from rtpjax.plan.step import StepShape, abstract_arguments, compile_choose, forward
from rtpjax.sharding import make_mesh

PLAIN = "bf16"
_SCALE = 3e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, has_dummy=True)
    parser.add_argument("--formats", nargs="+", choices=tuple(METHODS), default=["int8"])
    parser.add_argument(
        "--rows", nargs="+", type=int, default=[2, 8], help="the CPU has at least 2"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", metavar="FILE", help="write results here")


def run(args: argparse.Namespace) -> int:
    """Prints milliseconds of a step and how many times faster than bf16 it is."""
    busy = busy_share()
    config = ModelConfig.from_hf(open_checkpoint(find_model(args)).config)
    names = [PLAIN, *args.formats]
    results = []
    for rows in args.rows:
        steps = {name: _Step(_in_format(config, name), rows) for name in names}
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(args.rounds):
            for name, step in steps.items():
                times[name].append(min(step.run(), step.run()))
        for name in names:
            pairs = zip(times[PLAIN], times[name], strict=True)
            ratios = [plain / own for plain, own in pairs]
            row = (rows, name, 1e3 * median(times[name]), 1e3 * min(times[name]))
            results.append((*row, median(ratios), min(times[PLAIN]) / min(times[name])))
    print(
        table(["rows", "weights", "median ms", "best ms", "median ratio", "of the best"], results)
    )
    write_json(args.json, "step", {"busy_share_before": busy, "results": results})
    return 0


def _in_format(config: ModelConfig, name: str) -> ModelConfig:
    if name == PLAIN:
        return dataclasses.replace(config, quantization=UNQUANTIZED)
    wanted = quantization_of(name, is_tied=config.tie_word_embeddings)
    kept = kept_on(jax.default_backend(), wanted)
    return dataclasses.replace(config, quantization=kept)


class _Step:
    """A compiled decode step and what it is called with."""

    def __init__(self, config: ModelConfig, rows: int):
        precision, mesh = Precision.of("BF16", jax.default_backend()), make_mesh(1)
        shape = StepShape(Bucket("decode", rows, rows), 512, 32, 257, 32)
        arguments = abstract_arguments(config, precision, shape, mesh)
        self._forward = forward(config, precision, shape, mesh).lower(*arguments).compile()
        self._choose = compile_choose(
            *(config, precision, shape, mesh), num_outputs=rows, wants=NOTHING
        )
        rng = np.random.default_rng(0)
        specs = abstract_state(config, precision).items()
        self._params = tuple(_values(rng, name, spec.shape, spec.dtype) for name, spec in specs)
        self._head = Model.of(config, precision, mesh).head_of(self._params)
        self._vector, self._caches, self._tokens, self._hidden = jax.tree.map(
            lambda array: jnp.zeros(array.shape, array.dtype), arguments[1:]
        )
        group = self._tokens.sharding
        state = seats.allocate(shape.max_num_seqs, shape.max_model_len, config.vocab_size, group)
        self._state = state._replace(tokens=None)  # type: ignore[arg-type]  # they are apart
        self._outputs = empty_outputs(rows)
        self.run()

    def run(self) -> float:
        """Seconds of a step."""
        start_s = time.perf_counter()
        self._caches, self._tokens, self._hidden = self._forward(
            self._params, self._vector, self._caches, self._tokens, self._hidden
        )
        sampled, self._tokens = self._choose(
            self._head, self._hidden, self._outputs, self._tokens, self._state
        )
        sampled.block_until_ready()
        return time.perf_counter() - start_s


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if dtype == np.int8:
        return jnp.asarray(rng.integers(-127, 128, shape, dtype=np.int8))
    if name.endswith("_scale"):
        return jnp.full(shape, _SCALE, jnp.float32)
    return jnp.asarray(rng.standard_normal(shape, dtype=np.float32) * 0.02, dtype)
