"""Inverse frequencies against transformers, and what each type does past the trained length."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.rotate import rotate
from rtpjax.models import ModelConfig, rope
from tests.golden import cases

ROPE_CASES = [name for name in cases.CASES if name.startswith("llama_rope")]

# Real checkpoints' options: Llama 3.1, Qwen2.5 with YaRN, Vicuna 16k.
REAL = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
    },
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
}


def config_of(parameters: dict) -> dict:
    return cases.CASES["llama"].config | {
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rope_parameters": parameters,
    }


@pytest.mark.parametrize("rope_type", REAL)
@pytest.mark.reference
def test_inv_freq_of_real_checkpoints(rope_type: str):
    pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    hf = config_of(REAL[rope_type])
    expected, factor = ROPE_INIT_FUNCTIONS[rope_type](LlamaConfig(**hf), "cpu")
    ours = ModelConfig.from_hf(hf).layer_ropes[0]
    assert rope.inv_freq(ours).dtype == np.float32
    np.testing.assert_allclose(rope.inv_freq(ours), expected.numpy(), rtol=2e-6)
    assert rope.attention_factor(ours) == pytest.approx(factor)


@pytest.mark.parametrize("context_len", [1, 8, 9, 24, 100])
@pytest.mark.reference
def test_dynamic_rotates_for_the_sequence_up_to_the_token(context_len: int):
    pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    hf = cases.CASES["llama_rope_dynamic_long"].config
    inv_freq, _ = ROPE_INIT_FUNCTIONS["dynamic"](LlamaConfig(**hf), "cpu", seq_len=context_len)
    position = context_len - 1
    cos, sin = rope.cos_sin(ModelConfig.from_hf(hf).layer_ropes[0], jnp.array([position]))
    np.testing.assert_allclose(cos[0], np.cos(position * inv_freq.numpy()), atol=2e-5)
    np.testing.assert_allclose(sin[0], np.sin(position * inv_freq.numpy()), atol=2e-5)


def test_dynamic_angle_depends_on_the_position_alone():
    dynamic = ModelConfig.from_hf(cases.CASES["llama_rope_dynamic_long"].config).layer_ropes[0]
    together, _ = rope.cos_sin(dynamic, jnp.arange(24))
    alone = [rope.cos_sin(dynamic, jnp.array([at]))[0][0] for at in range(24)]
    np.testing.assert_array_equal(together, np.stack(alone))
    plain, _ = rope.cos_sin(dataclasses.replace(dynamic, rope_type="default"), jnp.arange(24))
    limit = dynamic.max_position_embeddings
    np.testing.assert_array_equal(together[:limit], plain[:limit])
    assert np.abs(together[limit:] - plain[limit:]).max() > 0.1


@pytest.mark.parametrize("case_name", ROPE_CASES)
def test_each_scaling_case_differs_from_plain_rope(case_name: str):
    scaled = ModelConfig.from_hf(cases.CASES[case_name].config).layer_ropes[0]
    plain = dataclasses.replace(scaled, rope_type="default")
    positions = jnp.arange(cases.PROMPT_LEN)
    differ = np.abs(rope.cos_sin(scaled, positions)[0] - rope.cos_sin(plain, positions)[0]).max()
    # Within its trained length dynamic is plain rope by definition.
    assert (differ > 0.05) == (case_name != "llama_rope_dynamic")


def test_rotate_turns_pairs_and_keeps_the_rest():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 6)), jnp.float32)
    angles = np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 2.0]], np.float32)
    turned = np.asarray(rotate(x, jnp.cos(angles), jnp.sin(angles)))
    pairs = np.asarray(x[..., :2]) + 1j * np.asarray(x[..., 2:4])
    expected = pairs * np.exp(1j * angles)[:, None, :]
    np.testing.assert_allclose(turned[..., :2], expected.real, atol=1e-6)
    np.testing.assert_allclose(turned[..., 2:4], expected.imag, atol=1e-6)
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])


def test_partial_rotary_factor_rotates_the_leading_features():
    options = cases.CASES["llama"].config | {"partial_rotary_factor": 0.5}
    assert ModelConfig.from_hf(options).layer_ropes[0].rotary_dim == 8
