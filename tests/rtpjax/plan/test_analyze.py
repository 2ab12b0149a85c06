"""Whole steps through the GPU compiler; in the environment of `make gpu-check` only."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import pytest

from rtpjax import gpus, sharding
from rtpjax.engine.batch import Bucket
from rtpjax.engine.step import COMMAND_BUFFERS
from rtpjax.engine.wants import VARIANTS
from rtpjax.models import ModelConfig, Precision
from rtpjax.plan import analyze, hlo, limits, presets, thunks, topology
from rtpjax.plan.step import (
    StepShape,
    argument_names,
    caches_of,
    compile_choose,
    compile_step,
)

needs_compiler = pytest.mark.skipif(
    not topology.compiler_is_installed(), reason="the GPU compiler is not installed"
)
BF16 = Precision.of("BF16", "gpu")
SMOLLM2 = ModelConfig.from_hf(presets.load("smollm2-135m"))
SHAPE = StepShape(Bucket("decode", 8, 8), 1024, 64, 1031, 8)
CONTEXT = 256


def test_extrapolation_is_linear_in_layers():
    few = [analyze.Counts(n, 10.0, 100 + 5 * n, 7 + 3 * n, 2 + 14 * n, {"all-reduce": 2 * n + 1})
           for n in (2, 4)]  # fmt: skip
    layer = few[0].per_layer(few[1])
    assert (layer.temp_bytes, layer.argument_bytes, layer.moved_bytes, layer.launches) == (
        0,
        5,
        3,
        14,
    )
    assert layer.collectives == {"all-reduce": 2}
    assert analyze._beside(few[1], layer) == {"all-reduce": 1}


def test_pools_are_the_layers_arrays_on_one_device_and_what_is_live_is_one_layers():
    model = ModelConfig.from_hf(presets.load("qwen3-32b"))
    mesh = sharding.make_mesh(4, model=model)
    three = model.with_layers(3)

    def pools(precision: Precision, context_len: int) -> tuple[hlo.Pool, ...]:
        whole = limits.needs(model, precision, 4)
        caches = caches_of(three, precision, SHAPE, mesh)
        return analyze.pools_of(whole, caches, SHAPE, context_len)

    token = 2 * 128  # kv heads on a device, head_dim
    [pages] = pools(BF16, CONTEXT)
    size = 3 * 1031 * 64 * token * 2
    assert pages == hlo.Pool(size, 8 * CONTEXT * token * 2, 8 * 64 * token * 2)
    pages, scales = pools(dataclasses.replace(BF16, cache=jnp.dtype(jnp.int8)), 250)
    assert pages == hlo.Pool(3 * 1031 * 64 * token, 8 * 250 * token, 8 * 64 * token)
    assert scales == hlo.Pool(3 * 1031 * 8, 8 * 4 * 8, 8 * 8)  # two heads', four pages a row


@needs_compiler
@pytest.mark.parametrize("cache", ["int8", "float8_e4m3fn"])
def test_a_quantized_cache_is_written_by_one_kernel_a_layer_in_place(cache):
    """On two devices: XLA would gather the cache where the kernel does not stand in shard_map."""
    two = ModelConfig.from_hf(presets.load("qwen2.5-0.5b")).with_layers(2)
    precision, h100 = dataclasses.replace(BF16, cache=jnp.dtype(cache)), gpus.load("h100")
    compiled = compile_step(two, precision, SHAPE, topology.make_mesh(h100, 2, two), h100)
    module = hlo.parse(compiled.as_text())
    names = argument_names(two, precision, num_caches=1)
    assert len({names[i] for i in module.aliased}) == 4 + 2  # tokens and hidden states
    assert not hlo.copied_parameters(module) and not hlo.gathered_parameters(module)
    found = [hlo.kernel_name(i) for i in module.entry.values() if hlo._target(i)]
    assert found.count("quantized_write") == 2


@needs_compiler
def test_a_step_of_all_layers_is_what_was_extrapolated():
    """SmolLM2 with 8 layers, compiled whole and from 2 and 4."""
    eight = SMOLLM2.with_layers(8)
    h100 = gpus.load("h100")
    report = analyze.analyze(eight, BF16, h100, 1, SHAPE, context_len=CONTEXT)
    mesh = topology.make_mesh(h100, 1)
    compiled = compile_step(eight, BF16, SHAPE, mesh, h100)
    whole = limits.needs(eight, BF16, 1)
    found = hlo.kernels(
        hlo.parse(compiled.as_text()),
        analyze.loop_trips(SHAPE, CONTEXT),
        analyze.pools_of(whole, caches_of(eight, BF16, SHAPE, mesh), SHAPE, CONTEXT),
    )
    assert report.moved_bytes == pytest.approx(hlo.total_bytes(found), rel=0.02)
    memory = compiled.memory_analysis()
    assert report.argument_bytes == pytest.approx(memory.argument_size_in_bytes, rel=1e-3)
    assert report.temp_bytes == pytest.approx(memory.temp_size_in_bytes, rel=0.1)


@needs_compiler
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_host_never_waits_while_tokens_are_chosen(variant, tmp_path):
    """Without loops in graphs, the variant that has everything would; with them it is one graph.

    The loops of top-k and top-p run a known number of times, and stay out of graphs.
    """
    h100, wants = gpus.load("h100"), VARIANTS[variant]
    mesh = topology.make_mesh(h100, 1)
    captured = {}
    for kinds in (None, "FUSION,CONDITIONAL", *[""][: variant == "greedy"]):
        folder = tmp_path / f"graphs {kinds}"
        options = {"xla_dump_to": str(folder)}
        options |= {} if kinds is None else {COMMAND_BUFFERS: kinds}
        compiled = compile_choose(
            SMOLLM2, BF16, SHAPE, mesh, h100, num_outputs=8, wants=wants, options=options
        )
        captured[kinds] = thunks.read_dump(folder, hlo.parse(compiled.as_text() or ""))
    assert captured[None].waits == ()
    if variant != "filters":
        assert captured[None] == thunks.HostWork((), num_graphs=1, num_launches=0)
    assert bool(captured["FUSION,CONDITIONAL"].waits) == (variant == "everything")
    if variant == "greedy":
        assert captured[""] == thunks.HostWork((), num_graphs=0, num_launches=7)


@needs_compiler
def test_a_compiled_step_updates_every_cache_in_place():
    two, l4 = SMOLLM2.with_layers(2), gpus.load("l4")
    compiled = compile_step(two, BF16, SHAPE, topology.make_mesh(l4, 1), l4)
    module = hlo.parse(compiled.as_text())
    names = argument_names(two, BF16, num_caches=1)
    caches = {f"caches[0].{part}" for part in ("k_pages", "v_pages")}
    assert {names[i] for i in module.aliased} == caches | {"tokens", "hidden"}


@needs_compiler
def test_a_cache_that_fills_the_gpu_makes_xla_compute_nothing_twice():
    """It would save memory that it wrongly counts: engine.step.COMPILER_OPTIONS."""
    four, h100 = SMOLLM2.with_layers(4), gpus.load("h100")
    page_bytes = SHAPE.page_size * limits.needs(four, BF16, 1).token_bytes
    shape = dataclasses.replace(SHAPE, num_pages=60 * 10**9 // page_bytes)
    compiled = compile_step(four, BF16, shape, topology.make_mesh(h100, 1), h100)
    assert "remat" not in compiled.as_text()
