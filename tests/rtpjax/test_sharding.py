"""The mesh, the axis table, and a model split over devices."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rtpjax.errors import ConfigError
from rtpjax.models import ModelConfig, abstract_state, init_random
from rtpjax.sharding import (
    AXIS_RULES,
    CACHE_AXES,
    Split,
    check_model_fits,
    make_mesh,
    mesh_shape,
    named_sharding,
    upload,
    ways,
)
from tests.golden import cases
from tests.rtpjax.models.paged_run import FP32, PagedRun, golden_model


def test_mesh_takes_the_first_devices():
    mesh = make_mesh(2)
    assert mesh.shape == {"dp": 1, "kv_ep": 1, "kv": 2, "ep": 1, "q": 1, "mlp": 1}
    assert list(mesh.devices.flat) == jax.devices()[:2]


@pytest.mark.parametrize("value", [np.arange(12, dtype=np.int32), np.arange(4) > 1])
@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("dp")])
def test_an_upload_lies_where_it_should(value: np.ndarray, spec: PartitionSpec):
    mesh = make_mesh(2, dp_size=2)
    where = NamedSharding(mesh, spec)
    array = upload(value, where)
    assert (array.sharding, array.dtype, array.committed) == (where, value.dtype, True)
    halves = [value, value] if spec == PartitionSpec() else np.split(value, 2)
    for shard in array.addressable_shards:
        half = halves[list(mesh.devices.flat).index(shard.device) // 2]
        np.testing.assert_array_equal(np.asarray(shard.data), half)


@pytest.mark.parametrize("tp_size", [0, 9])
def test_refuses_more_devices_than_there_are(tp_size: int):
    with pytest.raises(ConfigError, match=f"tp_size is {tp_size}, but 8 cpu"):
        make_mesh(tp_size)
    with pytest.raises(ConfigError, match=r"15 devices together, but 8 cpu.*NUM_CPU_DEVICES to 15"):
        make_mesh(5, dp_size=3)


def shaped(heads: int, kv_heads: int, mlp: int, **moe: int) -> ModelConfig:
    name = "Qwen3MoeForCausalLM" if moe else "Qwen3ForCausalLM"
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    options = cases.CASES["qwen3"].config | sizes | {"intermediate_size": mlp, **moe}
    return ModelConfig.from_hf(options | {"architectures": [name]})


SMOLLM2, QWEN2_7B, LLAMA_70B = (9, 3, 1536), (28, 4, 18944), (64, 8, 28672)


@pytest.mark.parametrize(
    ("shape", "tp_size", "heads", "kv_heads"),
    [
        (LLAMA_70B, 8, 8, 8),
        (LLAMA_70B, 16, 16, 8),  # two devices keep the same kv head
        (QWEN2_7B, 4, 4, 4),
        (QWEN2_7B, 8, 4, 4),  # 28 heads: two devices compute the same
        (SMOLLM2, 3, 3, 3),
        (SMOLLM2, 2, 1, 1),
        (SMOLLM2, 6, 3, 3),
    ],
)
def test_the_finest_split_of_attention(shape, tp_size: int, heads: int, kv_heads: int):
    config = shaped(*shape)
    assert Split.of(config, tp_size) == Split(tp_size, heads, kv_heads)
    check_model_fits(config, tp_size)
    assert math.prod(mesh_shape(tp_size, model=config).values()) == tp_size


@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        (SMOLLM2, (4,), r"split over 1 of these devices only.*one of \[1, 2, 3, 6\]"),
        (SMOLLM2, (5,), r"1536 MLP features are not a multiple.*one of \[1, 2, 3, 6\]"),
        ((4, 2, 48), (3,), r"4 attention heads and 2 key/value heads.*one of \[1, 2, 4, 8\]"),
        (LLAMA_70B, (8, 2), "no experts that EP_SIZE could split.*Set EP_SIZE to 1"),
    ],
)
def test_refuses_what_does_not_pay_and_names_what_does(shape, sizes, message: str):
    with pytest.raises(ConfigError, match=message):
        check_model_fits(shaped(*shape), *sizes)


def test_refuses_experts_that_cannot_be_split():
    config = shaped(32, 4, 6144, num_experts=128, moe_intermediate_size=768)
    for tp_size, ep_size in [(8, 1), (8, 8), (8, 2), (16, 8)]:
        check_model_fits(config, tp_size, ep_size)
    with pytest.raises(ConfigError, match="3 ways for experts do not divide the 8 ways"):
        check_model_fits(config, 8, 3)
    odd = shaped(32, 4, 64, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=768)
    with pytest.raises(ConfigError, match="6 experts are not a multiple of EP_SIZE"):
        check_model_fits(odd, 4, 4)


@pytest.mark.parametrize("ep_size", [1, 2, 4, 8])
def test_every_part_of_a_model_with_experts_is_split_as_asked(ep_size: int):
    """8 devices, 4 kv heads: the ways multiply to what was asked, also where axes are shared."""
    config = shaped(32, 4, 6144, num_experts=128, moe_intermediate_size=768)
    mesh = make_mesh(8, ep_size=ep_size, model=config)
    expected = {"heads": 8, "kv_heads": 4, "experts": ep_size, "expert_mlp": 8 // ep_size}
    assert {axis: ways(mesh, axis) for axis in expected} == expected


def test_axes_to_places():
    mesh = make_mesh(4, dp_size=2)
    assert named_sharding(mesh, ("heads", "embed"), (64, 32)).spec == PartitionSpec("kv", None)
    assert named_sharding(mesh, ("vocab", "embed"), (63, 32)).spec == PartitionSpec(None, None)
    cache = named_sharding(mesh, CACHE_AXES, (18, 4, 8, 16))
    assert cache.spec == PartitionSpec("dp", None, "kv", None)
    copied = make_mesh(4, model=shaped(8, 2, 64))
    assert named_sharding(copied, ("heads",), (8,)).spec == PartitionSpec(("kv", "q"))
    assert named_sharding(copied, ("kv_heads",), (2,)).spec == PartitionSpec("kv")


def test_a_device_has_the_kv_head_of_its_heads():
    """8 heads in groups of 4, 2 kv heads, 4 devices: by hand."""
    mesh = make_mesh(4, model=shaped(8, 2, 64))
    heads, kv_heads = (
        named_sharding(mesh, (axis,), (size,)).devices_indices_map((size,))
        for axis, size in (("heads", 8), ("kv_heads", 2))
    )
    found = [(heads[d][0].start or 0, kv_heads[d][0].start or 0) for d in jax.devices()[:4]]
    assert found == [(0, 0), (2, 0), (4, 1), (6, 1)]


@pytest.mark.parametrize("case_name", cases.CASES)
def test_every_parameter_has_a_place(case_name: str):
    specs = abstract_state(ModelConfig.from_hf(cases.CASES[case_name].config), FP32)
    assert {axis for spec in specs.values() for axis in spec.axes} <= AXIS_RULES.keys()


@pytest.mark.parametrize("case_name", ["llama_biases", "qwen3", "gemma3", "olmo2", "glm4"])
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
    split = run.caches.arrays[0].k_pages.sharding.shard_shape(run.caches.arrays[0].k_pages.shape)
    assert split[2] == config.num_key_value_heads // 2


def test_names_are_in_the_order_of_the_leaves():
    options = cases.CASES["llama"].config | {"num_hidden_layers": 12, "vocab_size": 7}
    config = ModelConfig.from_hf(options)
    run = PagedRun(init_random(config, FP32), num_rows=1, max_len=4)
    specs = abstract_state(config, FP32)
    assert [leaf.shape for leaf in run.leaves] == [spec.shape for spec in specs.values()]
