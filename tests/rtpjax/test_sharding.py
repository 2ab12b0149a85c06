"""The mesh, the axis table, and a model split over devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rtpjax.errors import ConfigError
from rtpjax.models import ModelConfig, abstract_state, init_random
from rtpjax.sharding import AXIS_RULES, CACHE_AXES, check_model_fits, make_mesh, named_sharding
from tests.golden import cases
from tests.rtpjax.models.paged_run import FP32, PagedRun, golden_model


def test_mesh_takes_the_first_devices():
    mesh = make_mesh(2)
    assert mesh.shape == {"dp": 1, "kv_ep": 1, "kv": 2, "ep": 1, "q": 1, "mlp": 1}
    assert list(mesh.devices) == jax.devices()[:2]


@pytest.mark.parametrize("tp_size", [0, 5])
def test_refuses_more_devices_than_there_are(tp_size: int):
    with pytest.raises(ConfigError, match=f"tp_size is {tp_size}, but 4 cpu"):
        make_mesh(tp_size)


def test_refuses_to_split_a_head():
    config = ModelConfig.from_hf(cases.CASES["llama"].config)
    check_model_fits(config, 2)
    with pytest.raises(ConfigError, match=r"one of \[1, 2\]"):
        check_model_fits(config, 4)


def test_axes_to_places():
    mesh = make_mesh(4)
    assert named_sharding(mesh, ("heads", "embed"), (64, 32)).spec == PartitionSpec("tp", None)
    assert named_sharding(mesh, ("vocab", "embed"), (63, 32)).spec == PartitionSpec(None, None)
    cache = named_sharding(mesh, CACHE_AXES, (9, 4, 8, 16))
    assert cache.spec == PartitionSpec(None, None, "tp", None)


@pytest.mark.parametrize("case_name", cases.CASES)
def test_every_parameter_has_a_place(case_name: str):
    specs = abstract_state(ModelConfig.from_hf(cases.CASES[case_name].config), FP32)
    assert {axis for spec in specs.values() for axis in spec.axes} <= AXIS_RULES.keys()


@pytest.mark.parametrize("case_name", ["llama_biases", "qwen3"])
def test_two_devices_compute_what_one_does(case_name: str):
    model, mesh = golden_model(case_name), make_mesh(2)
    config = ModelConfig.from_hf(cases.CASES[case_name].config)
    run = PagedRun(model, num_rows=1, max_len=cases.PROMPT_LEN)
    specs = abstract_state(config, FP32).values()
    run.leaves = [
        jax.device_put(leaf, named_sharding(mesh, spec.axes, spec.shape))
        for leaf, spec in zip(run.leaves, specs, strict=True)
    ]
    run.caches = jax.tree.map(
        lambda pages: jax.device_put(pages, named_sharding(mesh, CACHE_AXES, pages.shape)),
        run.caches,
    )
    (logits,) = run.step([cases.prompt(case_name)], "extend")
    np.testing.assert_allclose(logits, cases.golden_logits(case_name), atol=1e-4, rtol=0)
    split = run.caches[0].k_pages.sharding.shard_shape(run.caches[0].k_pages.shape)
    assert split[2] == config.num_key_value_heads // 2


def test_names_are_in_the_order_of_the_leaves():
    options = cases.CASES["llama"].config | {"num_hidden_layers": 12, "vocab_size": 7}
    config = ModelConfig.from_hf(options)
    run = PagedRun(init_random(config, FP32), num_rows=1, max_len=4)
    specs = abstract_state(config, FP32)
    assert [leaf.shape for leaf in run.leaves] == [spec.shape for spec in specs.values()]
