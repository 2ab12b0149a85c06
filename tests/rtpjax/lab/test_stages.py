"""Every stage in miniature, so that none fails on a GPU for a slip of the pen."""

from __future__ import annotations

import json
import pkgutil
import time

import pytest

from rtpjax.lab import cli, record, stages
from rtpjax.lab.stage import Lab
from rtpjax.lab.stages import STAGES, run_of
from rtpjax.plan import presets

# What each stage has to bring, in miniature.
FIGURES = {
    "facts": {"facts.jax_start"},
    "ceilings": {"ceiling.read", "ceiling.copy", "ceiling.l2", "ceiling.dot", "ceiling.launch"},
    "forward": {"forward.1", "forward.2", "extend", "mixed"},
    "trace": {"trace.1.lm_head", "trace.1.down", "trace.1.kernels"},
    "choose": {
        "choose.greedy.1",
        "choose.held.greedy.1",
        "choose.filters.no_while.1",
        "choose.everything.while.1",
    },
    "graphs": {"graphs.off.1", "graphs.while.1"},
    "engine": {"engine.1", "engine.2", "engine.prompts.2x32", "engine.sampling.top_p.2"},
    "decode_attention": {"decode_attention.8x1k", "decode_attention.skewed.xla"},
    "prefill_attention": {f"prefill_attention.{name}" for name in ("pallas", "cudnn", "mosaic")},
    "quantized": {"quantized.down.int4.2", "quantized.gate_up.fp8.2", "quantized.down.bf16.2"},
    "moe": {"moe.2", "moe.4", "moe.starts.loop", "moe.starts.no_loop"},
    "kernels": {"kernels.ok"},
    "tilings": {"tilings.down.64", "tilings.down.before.64", "tilings.gate_up.xla.64"},
    "cublas": {"cublas.down.1", "cublas.lm_head.2"},
    "peer": {"peer.eager.1", "peer.extend", "peer.transformers"},
    "server": {"server.1", "server.2.ttft", "server.2.tpot"},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(presets.load("llama-3.1-8b") | cli.MINIATURE))
    return path


def test_the_table_and_the_files_are_the_same_stages():
    files = {info.name for info in pkgutil.iter_modules(stages.__path__)}
    assert files == set(STAGES) == set(FIGURES)


def marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
    if name == "server":
        return (pytest.mark.processes,)
    return (pytest.mark.reference,) if STAGES[name].uses == "torch" else ()


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in STAGES])
def test_a_stage_in_miniature(name, config, tmp_path):
    if STAGES[name].uses == "torch":
        pytest.importorskip("torch")
    lab = Lab(
        record=record.Recorder(tmp_path / "results.jsonl", name, time.time()),
        scratch=tmp_path,
        cache=tmp_path / "cache",
        model=config,
        gpu="h100",
        is_small=True,
    )
    run_of(name)(lab)
    lines = record.read(lab.record.path)
    assert [line for line in lines if "error" in line] == []
    values = {line["id"]: line["value"] for line in lines if "value" in line}
    assert values.keys() >= FIGURES[name]
    assert all(value >= 0 for value in values.values())
