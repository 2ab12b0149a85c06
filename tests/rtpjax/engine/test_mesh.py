"""The engine over a mesh of virtual devices says what one device says."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest

from rtpjax.engine.batch import pack
from rtpjax.engine.runner import Runner
from tests.rtpjax.engine import tiny

# 4 heads and 2 kv heads: on 4 devices a kv head is kept twice, on 8 everything of attention is.
MESHES = [(2, 1), (1, 2), (4, 1), (2, 2), (8, 1), (2, 4), (4, 2), (1, 8)]
LONG = (1, 1), (2, 1), (4, 2)


@cache
def mesh_runner(tp_size: int, dp_size: int) -> Runner:
    return tiny.make_runner(dataclasses.replace(tiny.CONFIG, tp_size=tp_size, dp_size=dp_size))


def logits_of(runner: Runner, prompts: list[tuple[int, ...]]) -> np.ndarray:
    """Logits after each prompt, which stand in one step, spread over the groups."""
    engine = tiny.make_engine(runner)
    for i, prompt in enumerate(prompts):
        tiny.add(engine, str(i), prompt)
    config = runner.config
    batch = pack(engine._groups.schedule(), runner.buckets, config.table_width, config.page_size)
    logits = np.asarray(runner.forward(batch).logits)
    places = {row.sequence.request.request_id: b for b, row in batch.rows.items()}
    return logits[[places[str(i)] for i in range(len(prompts))]]


@pytest.mark.parametrize(("tp_size", "dp_size"), MESHES)
def test_greedy_tokens_and_logits_are_those_of_one_device(compiled, tp_size, dp_size):
    runner = mesh_runner(tp_size, dp_size)
    prompts = [tiny.prompt(n, n) for n in (1, 5, 30, 50, 17, 3)]
    compiled.reset()
    runner.reset()
    expected = tiny.generate(tiny.make_engine(compiled), prompts)
    assert tiny.generate(tiny.make_engine(runner), prompts) == expected
    assert runner.num_recompiles == 0
    few = [tiny.prompt(n, n) for n in (1, 5, 20)]
    compiled.reset()
    runner.reset()
    np.testing.assert_allclose(logits_of(runner, few), logits_of(compiled, few), atol=1e-4, rtol=0)
