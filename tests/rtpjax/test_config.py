from __future__ import annotations

import dataclasses
import logging

import jax.numpy as jnp
import pytest

from pallas_kernels.registry import Target
from rtpjax.config import GIB, MIB, EngineConfig, EngineSettings, check_cache_dtype, resolve
from rtpjax.engine.seats import seat_bytes
from rtpjax.errors import ConfigError
from rtpjax.models import ModelConfig, Pages, Precision

MODEL = ModelConfig.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 2048,
    }
)
SPECS = (Pages(8, 64, 64),) * 16  # 64 KiB a token in float32


def resolved(platform="cpu", *, free_bytes: int | None = 64 * GIB, **settings) -> EngineConfig:
    return resolve(
        EngineSettings(**settings), MODEL, SPECS, platform=platform, free_bytes=free_bytes
    )


def test_what_auto_is_on_the_cpu():
    config = resolved()
    assert dataclasses.asdict(config) == {
        "precision": {
            "weights": jnp.bfloat16,
            "activations": jnp.float32,
            "cache": jnp.float32,
        },
        "max_model_len": 2048,
        "page_size": 32,
        # 4 GiB of 2 MiB pages; 32 whole contexts would be 2,049.
        "cache_groups": ({"window": None, "num_pages": 2048},),
        "max_num_seqs": 32,
        "max_num_batched_tokens": 512,
        "max_num_waiting": 4096,
        "use_prefix_cache": True,
        "tp_size": 1,
        "dp_size": 1,
        "ep_size": 1,
        "attention_implementation": None,
        "drafts": None,
    }
    assert config.table_width == 64


def test_what_auto_is_on_a_gpu():
    config = resolved("gpu")
    assert config.precision.cache == jnp.bfloat16
    assert (config.page_size, config.max_num_seqs) == (64, 256)
    assert config.max_num_batched_tokens == 8192
    # 62 GiB would be 31,744 pages of 2 MiB; so many contexts take no more than 8,192.
    assert config.num_pages == 256 * 32 + 1


@pytest.mark.parametrize(
    ("settings", "num_pages"),
    [
        ({"kv_cache_bytes": 200 * MIB}, 100),
        ({"kv_cache_bytes": 201 * MIB}, 100),
        ({"kv_cache_bytes": 200 * MIB, "page_size": 16}, 200),
        ({"free_bytes": 1 * GIB}, 128),  # a quarter
        ({"free_bytes": 2 * GIB}, 130),  # two of the longest contexts
        ({"free_bytes": 16 * GIB}, 512),  # a sixteenth
        ({"free_bytes": 1 * GIB, "max_num_seqs": 1}, 65),  # one context, and padding
        ({"platform": "gpu", "free_bytes": 3 * GIB}, 512),  # 2 GiB are left for temporaries
        ({"platform": "gpu", "free_bytes": 3 * GIB, "tp_size": 4}, 1024),  # 1 GiB a head, twice
        ({"platform": "gpu", "free_bytes": GIB, "reserved_bytes": GIB // 2}, 256),
    ],
)
def test_pages_that_the_memory_holds(settings, num_pages):
    assert resolved(**settings).num_pages == num_pages


def test_the_host_is_measured_when_nobody_says_what_is_free():
    assert resolved(free_bytes=None).num_pages >= 2


@pytest.mark.parametrize(
    ("act_type", "weights", "cache"),
    [("FP32", jnp.float32, jnp.float32), ("FP16", jnp.float16, jnp.float16)],
)
def test_formats_on_a_gpu(act_type, weights, cache):
    precision = resolved("gpu", act_type=act_type).precision
    assert (precision.weights, precision.cache) == (weights, cache)


def test_the_context_is_cut_to_what_fits_and_that_is_said(caplog):
    config = resolved(kv_cache_bytes=20 * MIB)
    assert config.max_model_len == 9 * 32
    assert config.num_pages == 10
    assert "cut from 2048 to 288 tokens" in caplog.text


def test_a_context_beyond_the_training_is_warned_of(caplog):
    assert resolved(max_model_len=4096).max_model_len == 4096
    assert "more than the 2048 tokens" in caplog.text


def test_everything_resolved_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        resolved(max_num_seqs=3, kv_cache_bytes=200 * MIB)
    for part in ("bfloat16/float32/float32", "max_num_seqs=3", "num_pages=100", "cache_mib=200"):
        assert part in caplog.text


def test_a_context_that_does_not_fit_is_refused_with_what_would():
    with pytest.raises(ConfigError) as refused:
        resolved(max_model_len=1000, kv_cache_bytes=20 * MIB)
    assert "takes 66 MiB and 20 MiB are there" in str(refused.value)
    assert "MAX_SEQ_LEN to at most 288, or KV_CACHE_MEM_MB to at least 66" in str(refused.value)
    assert resolved(max_model_len=288, kv_cache_bytes=20 * MIB).max_model_len == 288
    assert resolved(max_model_len=1000, kv_cache_bytes=66 * MIB).num_pages == 33


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"page_size": 24}, "SEQ_SIZE_PER_BLOCK is 24; it must be a power of two from 1 to 1024"),
        ({"page_size": 2048}, "SEQ_SIZE_PER_BLOCK is 2048"),
        ({"page_size": 0}, "SEQ_SIZE_PER_BLOCK is 0"),
        ({"page_size": -4}, "SEQ_SIZE_PER_BLOCK is -4"),
        ({"max_num_seqs": 0}, "CONCURRENCY_LIMIT is 0; it must be at least 1"),
        ({"max_num_batched_tokens": 8}, "MAX_BATCH_TOKENS_SIZE is 8; it must be at least 16"),
        ({"max_model_len": 1}, "MAX_SEQ_LEN is 1; it must be at least 2"),
        ({"max_model_len": 0}, "MAX_SEQ_LEN is 0; it must be at least 2"),
        (
            {"attention_implementation": "mosaic"},
            r"IMPLEMENTATION is 'mosaic'; on this platform \(cpu\) there are reference, xla\.",
        ),
        (
            {"attention_implementation": "fast", "platform": "gpu"},
            r"IMPLEMENTATION is 'fast'; .*\(gpu\) there are mosaic, pallas, reference, xla\.",
        ),
        ({"kv_cache_bytes": 3 * MIB}, "has 3.0 MiB.*KV_CACHE_MEM_MB to at least 4"),
        ({"kv_cache_bytes": 0}, "has 0.0 MiB"),
        ({"kv_cache_bytes": -1}, "KV_CACHE_MEM_MB"),
        ({"free_bytes": 12 * MIB}, "has 3.0 MiB"),
        (
            {"platform": "gpu", "free_bytes": GIB},
            "1024 MiB of GPU memory are left.*2048 MiB are reserved.*TP_SIZE",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        resolved(**settings)


@pytest.mark.parametrize(
    ("kv_cache_dtype", "dtype", "num_pages"),
    # 32 tokens of 16 layers' 8 heads: 1 MiB in bf16; in a byte half, and 16 * 2 * 8 scales.
    [(None, jnp.bfloat16, 1024), ("int8", jnp.int8, 2044), ("fp8", jnp.float8_e4m3fn, 2044)],
)
def test_a_quantized_cache_holds_twice_the_tokens_less_its_scales(
    kv_cache_dtype, dtype, num_pages, caplog
):
    with caplog.at_level(logging.INFO):
        config = resolved(
            "gpu",
            page_size=32,
            kv_cache_dtype=kv_cache_dtype,
            reserved_bytes=GIB,
            free_bytes=2 * GIB,
        )
    assert config.precision == Precision(jnp.bfloat16, jnp.bfloat16, dtype)
    assert config.num_pages == num_pages == GIB // (MIB // 2 + 1024 if kv_cache_dtype else MIB)
    assert f"/{jnp.dtype(dtype).name} " in caplog.text


def test_a_large_state_of_running_requests_takes_memory_of_the_cache():
    """The tokens of 256 requests of a million tokens are a GiB; half a one of it is spare."""
    model = dataclasses.replace(MODEL, max_position_embeddings=1 << 20)
    settings = EngineSettings(max_num_seqs=256)
    plain, large = (
        resolve(settings, m, SPECS, platform="gpu", free_bytes=40 * GIB) for m in (MODEL, model)
    )
    assert plain.num_pages == 256 * 32 + 1
    seats = 256 * seat_bytes(large.max_model_len, 64)
    budget = 38 * GIB - (256 * seat_bytes(1 << 20, 64) - GIB // 2)
    assert large.num_pages == budget // (2 * MIB)
    assert large.num_pages * 2 * MIB + seats <= 38 * GIB + GIB // 2


FP8, INT8 = (EngineSettings(kv_cache_dtype=name) for name in ("fp8", "int8"))


def test_fp8_caches_are_refused_where_a_gpu_cannot_compute_with_them():
    with pytest.raises(ConfigError, match=r"8\.9 or later, and this GPU has 8\.0.*INT8_KV_CACHE=1"):
        check_cache_dtype(FP8, Target("gpu", 80))
    for target in (Target("gpu", 89), Target("gpu", 100), Target("cpu")):
        check_cache_dtype(FP8, target)
    for settings in (INT8, EngineSettings()):
        check_cache_dtype(settings, Target("gpu", 80))
