"""The engine over a mesh of virtual devices says what one device says."""

from __future__ import annotations

import dataclasses
import random
from functools import cache

import jax
import numpy as np
import pytest

from rtpjax.engine.batch import COLUMN, pack
from rtpjax.engine.request import GenerationRequest, Grammar
from rtpjax.engine.runner import Runner
from rtpjax.models import ModelConfig
from tests.e2e import byte_model
from tests.rtpjax.engine import tiny

# Few programs: each is compiled for each mesh.
CONFIG = dataclasses.replace(tiny.CONFIG, max_num_seqs=2, max_num_batched_tokens=16)
MOE = ModelConfig.from_hf(
    tiny.HF_CONFIG
    | {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 16, "intermediate_size": None}
)

# (tp, dp); 4 heads and 2 kv heads: on 4 devices two keep the same kv head, on 8 two do the same.
MESHES = [
    (2, 2),
    *(
        pytest.param(*sizes, marks=pytest.mark.slow)
        for sizes in [(2, 1), (1, 2), (4, 1), (8, 1), (2, 4), (4, 2), (1, 8)]
    ),
]
DIGITS = Grammar("regex", "[0-9]{9,14}")


@cache
def runner_on(tp_size: int, dp_size: int, ep_size: int = 1, model: ModelConfig = tiny.MODEL):
    config = dataclasses.replace(CONFIG, tp_size=tp_size, dp_size=dp_size, ep_size=ep_size)
    return tiny.make_runner(config, model, len(byte_model.tokenizer()))


def fresh_engine(runner: Runner, **settings) -> tiny.CheckedEngine:
    runner.reset()
    config = tiny.changed(runner.config, **settings)
    return tiny.CheckedEngine(runner, config, byte_model.tokenizer(), [byte_model.end_id()])


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    """Random bytes."""
    return tuple(random.Random(f"{length} {seed}").choices(range(3, 256), k=length))


def logits_of(runner: Runner, prompts: list[tuple[int, ...]]) -> np.ndarray:
    """Logits after each prompt, each in a step of its own, in the group that it falls to."""
    engine, rows = fresh_engine(runner), []
    head = jax.jit(lambda params, hidden: runner._model.with_head(params).logits(hidden))
    for i, token_ids in enumerate(prompts):
        tiny.add(engine, str(i), token_ids)
        step = engine._groups.schedule()
        batch = pack(step, runner.buckets, CONFIG.table_width, CONFIG.page_size)
        runner.forward(batch)
        [(row, [place])] = batch.rows
        hidden = np.asarray(runner._hidden).reshape(
            runner.config.dp_size, -1, tiny.MODEL.hidden_size
        )
        at = batch.outputs[0][place, COLUMN["at"]]
        rows.append(head(runner._head, hidden[row.sequence.group, at][None])[0])
        engine.abort(str(i))
    return np.stack(rows)


def check_same(runner: Runner, one: Runner) -> None:
    prompts = [prompt(n, n) for n in (1, 5, 30, 50, 17, 3)]
    expected = tiny.generate(fresh_engine(one), prompts)
    assert tiny.generate(fresh_engine(runner), prompts) == expected
    assert len({tuple(tokens) for tokens in expected}) == len(prompts)
    few = [prompt(n, n) for n in (1, 5, 15)]
    np.testing.assert_allclose(logits_of(runner, few), logits_of(one, few), atol=1e-4, rtol=0)
    assert runner.num_recompiles == 0


@pytest.mark.parametrize(("tp_size", "dp_size"), MESHES)
def test_greedy_tokens_and_logits_are_those_of_one_device(tp_size: int, dp_size: int):
    check_same(runner_on(tp_size, dp_size), runner_on(1, 1))


@pytest.mark.parametrize(("tp_size", "dp_size", "ep_size"), [(4, 1, 2), (4, 2, 4), (2, 2, 1)])
@pytest.mark.slow
def test_experts_on_a_mesh_say_what_one_device_says(tp_size: int, dp_size: int, ep_size: int):
    check_same(runner_on(tp_size, dp_size, ep_size, MOE), runner_on(1, 1, 1, MOE))


def run_mixed(engine: tiny.CheckedEngine) -> dict[str, list[int]]:
    """Shared prefixes, grammars, biases, draws and scored prompts together; tokens by request."""
    stem = prompt(21)
    plain = tiny.params(max_tokens=14)
    for i in range(10):
        changes = [
            {},
            {"logit_bias": ((65 + i, 60.0),)},
            {"temperature": 0.8, "seed": i},
            {"prompt_logprobs": 1},
        ][i % 4]
        request = GenerationRequest(
            str(i),
            (*stem, *prompt(3 + i, i)) if i < 6 else prompt(20 + i, i),
            dataclasses.replace(plain, **changes),
            grammar=DIGITS if i % 5 == 0 else None,
        )
        engine.check(request)
        engine.add(request)
    return {name: tiny.tokens_of(outputs) for name, outputs in tiny.run(engine).items()}


@pytest.mark.parametrize(
    ("tp_size", "dp_size"), [(2, 2), pytest.param(4, 2, marks=pytest.mark.slow)]
)
def test_prefixes_preemption_and_constrained_rows(tp_size: int, dp_size: int):
    roomy = fresh_engine(runner_on(1, 1))
    expected = run_mixed(roomy)
    assert roomy.stats().num_preemptions == 0
    runner = runner_on(tp_size, dp_size)
    crowded = fresh_engine(runner, num_pages=1 + 16)
    assert run_mixed(crowded) == expected
    stats = crowded.stats()
    assert stats.num_preemptions > 0
    assert stats.prefix_hit_tokens > 0
    assert (stats.num_pages, stats.num_free_pages) == (2 * 16, 2 * 16)
    assert {tuple(tokens) for name, tokens in expected.items() if name in "05"} <= {
        tokens for tokens in map(tuple, expected.values()) if _are_digits(tokens)
    }
    assert runner.num_recompiles == 0


def _are_digits(tokens: tuple[int, ...]) -> bool:
    text = byte_model.tokenizer().decode(list(tokens), skip_special_tokens=True)
    return text.isdecimal() and 9 <= len(text) <= 14


def test_groups_share_the_requests_and_a_failed_step_harms_nobody(monkeypatch):
    runner = runner_on(2, 2)

    def begin() -> tiny.CheckedEngine:
        engine = fresh_engine(runner)
        for i in range(6):
            tiny.add(engine, str(i), prompt(9, i))
        return engine

    def tokens(engine: tiny.CheckedEngine) -> dict[str, list[int]]:
        answers = tiny.run(engine)
        return {
            name: [t for o in outputs for t in o.token_ids] for name, outputs in answers.items()
        }

    quiet = tokens(begin())
    engine = begin()
    assert sorted(s.group for s, _ in engine._live.values()) == [0, 0, 0, 1, 1, 1]
    engine.step()
    assert len(engine._groups.running) == 4
    monkeypatch.setattr(runner, "collect", lambda handle: 1 / 0)
    assert engine.step() == []
    monkeypatch.undo()
    assert tokens(engine) == quiet
