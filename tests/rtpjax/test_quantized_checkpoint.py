"""Quantized checkpoints against matrices that independent packers say they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from checkpoints_conv.readers import open_checkpoint
from rtpjax.checkpoint import load_params
from rtpjax.errors import CheckpointError, ConfigError
from rtpjax.models import ModelConfig, Precision
from rtpjax.models.encodings import encodings
from rtpjax.models.quantization import UNQUANTIZED
from rtpjax.models.weight_formats import PLAIN, Int4, Int8
from rtpjax.quantized_checkpoint import in_formats, wanted_quantization
from rtpjax.sharding import make_mesh
from tests.checkpoints_conv import tiny
from tests.golden import cases
from tests.rtpjax.models.encodings import packers

FP32 = Precision.of("FP32", "cpu")
FP8 = ml_dtypes.float8_e4m3fn
# Blocks of 128 need matrices of more than one.
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 1,
    "head_dim": 32,
}
CONFIG = tiny.config(tie_word_embeddings=False, **SIZES)
Stored = tuple[dict[str, np.ndarray], np.ndarray]


def gptq(**options: Any) -> tuple[dict[str, Any], Any]:
    config = {
        "quant_method": "gptq",
        "bits": options["bits"],
        "group_size": options["group"],
        "sym": options["is_symmetric"],
        "desc_act": options["is_reordered"],
        "checkpoint_format": options.get("version", "gptq"),
    }
    return config, lambda rng, out, size: packers.gptq(rng, out, size, **options)


def awq() -> tuple[dict[str, Any], Any]:
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}
    pack = lambda rng, out, size: packers.awq(rng, out, size, group=32)  # noqa: E731
    return {**config, "version": "gemm"}, pack


def fp8(block: list[int] | None, name: str) -> tuple[dict[str, Any], Any]:
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}

    def pack(rng: np.random.Generator, out: int, size: int) -> Stored:
        weight = rng.standard_normal((out, size)).astype(FP8)
        if block is None:
            scale = np.float32(rng.uniform(0.5, 2))
            tensors = {"weight": weight, name: np.asarray(scale), "input_scale": np.ones((), "f4")}
            return tensors, weight.astype(float) * float(scale)
        scales = rng.uniform(0.5, 2, (-(-out // 128), -(-size // 128))).astype(np.float32)
        spread = np.kron(scales.astype(float), np.ones((128, 128)))[:out, :size]
        return {"weight": weight, name: scales}, weight.astype(float) * spread

    return config, pack


def compressed(kind: str, bits: int, strategy: str, format: str) -> tuple[dict[str, Any], Any]:
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy}
    if strategy == "group":
        weights["group_size"] = 32
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    config = {"quant_method": "compressed-tensors", "format": format, "config_groups": groups}

    def pack(rng: np.random.Generator, out: int, size: int) -> Stored:
        groups = {"tensor": 1, "channel": 1, "group": size // 32}[strategy]
        scales = rng.uniform(0.01, 0.1, (out, groups)).astype(ml_dtypes.bfloat16)
        if strategy == "tensor":
            scales[:] = scales[0]
        numbers = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (out, size))
        if kind == "float":
            numbers = rng.standard_normal((out, size)).astype(FP8)
        spread = np.repeat(scales.astype(float), size // groups, axis=1)
        stored_scales = scales[0] if strategy == "tensor" else scales
        tensors = {"weight_scale": stored_scales}
        if format == "pack-quantized":
            packed = packers.words(numbers + 2 ** (bits - 1), bits)
            tensors |= {"weight_packed": packed, "weight_shape": np.array([out, size])}
        else:
            tensors["weight"] = numbers.astype(np.int8) if kind == "int" else numbers
        return tensors, numbers.astype(float) * spread

    return {**config, "ignore": ["lm_head"]}, pack


CASES = {
    "gptq": gptq(bits=4, group=32, is_symmetric=True, is_reordered=False),
    "gptq zeros": gptq(bits=4, group=64, is_symmetric=False, is_reordered=False),
    "gptq order": gptq(bits=4, group=32, is_symmetric=False, is_reordered=True),
    "gptq v2": gptq(
        bits=4, group=32, is_symmetric=False, is_reordered=False, version="gptq_v2"
    ),
    "gptq one group": gptq(bits=4, group=-1, is_symmetric=True, is_reordered=False),
    "gptq 8 bits": gptq(bits=8, group=32, is_symmetric=True, is_reordered=True),
    "gptq 8 bits zeros": gptq(bits=8, group=32, is_symmetric=False, is_reordered=False),
    "awq": awq(),
    "fp8 blocks": fp8([128, 128], "weight_scale_inv"),
    "fp8": fp8(None, "weight_scale"),
    "fp8 inv": fp8(None, "weight_scale_inv"),
    "compressed int8": compressed("int", 8, "channel", "int-quantized"),
    "compressed fp8": compressed("float", 8, "channel", "float-quantized"),
    "compressed fp8 tensor": compressed("float", 8, "tensor", "float-quantized"),
    "compressed int4": compressed("int", 4, "group", "pack-quantized"),
    "compressed packed int8": compressed("int", 8, "group", "pack-quantized"),
}  # fmt: skip


def stored(folder: Path, case: str, **changes: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint of a case, and the matrices that it stands for."""
    quantization_config, pack = CASES[case]
    rng = np.random.default_rng(0)
    tensors, matrices = {}, {}
    for name, values in tiny.weights(CONFIG).items():
        if not name.endswith("_proj.weight"):
            tensors[name] = matrices[name] = values
            continue
        parts, matrices[name] = pack(rng, *values.shape)
        prefix = name.removesuffix("weight")
        tensors |= {prefix + part: array for part, array in parts.items()}
    tensors = {k: v for k, v in {**tensors, **changes}.items() if v is not None}
    config = {**CONFIG, "quantization_config": quantization_config}
    return tiny.write_folder(folder, config, tensors), matrices


def loaded(folder: Path, *, platform: str, tp_size: int = 1, method: str | None = None):
    """The model's config and parameters, as load_engine makes them."""
    checkpoint = open_checkpoint(folder)
    model, specs, view = in_formats(checkpoint, method, FP32, platform)
    return model.quantization, specs, load_params(view, specs, make_mesh(tp_size))


def matrix_of(kept, params, module: str) -> np.ndarray:
    """What a product with a module's arrays multiplies with."""
    format = kept.of(module)
    arrays = {part: params[f"{module}.{part}"] for part in format.parts}
    num_inputs = len(arrays["input_order"]) if format != PLAIN and format.has_order else None
    num_inputs = num_inputs or arrays["weight"].shape[1] * (2 if isinstance(format, Int4) else 1)
    x = jnp.eye(num_inputs, dtype=jnp.float32)
    return np.asarray(jax.jit(format.product)(x, arrays)).T


def test_every_encoding_brings_a_case():
    assert {config["quant_method"] for config, _ in CASES.values()} == encodings().keys()


@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_products_are_with_the_matrices_that_were_packed(tmp_path: Path, case: str, tp_size: int):
    folder, matrices = stored(tmp_path / "m", case)
    kept, specs, params = loaded(folder, platform="gpu", tp_size=tp_size)
    assert kept.layers != PLAIN and kept.head == PLAIN
    for name in ("self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"):
        module = f"model.layers.0.{name}"
        got = matrix_of(kept, params, module)
        np.testing.assert_allclose(got, matrices[f"{module}.weight"], atol=1e-5, rtol=1e-5)
        weight = params[f"{module}.weight"]
        assert weight.dtype == specs[f"{module}.weight"].dtype
        assert (
            len(weight.addressable_shards[0].data) * len(weight.addressable_shards[0].data[0])
            == weight.size // tp_size
        )


@pytest.mark.parametrize("case", CASES)
def test_the_cpu_keeps_plain_matrices_of_what_it_has_no_products_for(tmp_path: Path, case: str):
    folder, matrices = stored(tmp_path / "m", case)
    kept, _, params = loaded(folder, platform="cpu")
    if case == "compressed int8":
        assert kept.layers == Int8(is_rotated=True)
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            module = f"model.layers.0.{name}"
            expected = matrices[f"{module}.weight"]
            error = np.abs(matrix_of(kept, params, module) - expected)
            # Rounded a second time, by the largest of 64 others that each is now a sum of.
            assert error.mean() < 0.004 * np.abs(expected).max()
            assert error.max() > 0
        return
    assert kept == UNQUANTIZED
    for name, expected in matrices.items():
        np.testing.assert_allclose(np.asarray(params[name]), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("method", "worst"), [("int8", 0.004), ("int4", 0.28), ("fp8", 0.036)])
def test_a_plain_checkpoint_is_quantized_while_it_is_loaded(tmp_path, method, worst):
    weights = tiny.weights(CONFIG)
    folder = tiny.write_folder(tmp_path / "m", CONFIG, weights)
    kept, _, params = loaded(folder, platform="gpu", tp_size=2, method=method)
    assert kept.head == Int8() and kept.embedding == PLAIN
    module = "model.layers.0.mlp.up_proj"
    original = weights[f"{module}.weight"]
    error = np.abs(matrix_of(kept, params, module) - original).max(axis=1)
    largest = np.abs(original).max(axis=1)
    # Half a step of the largest number of a group, and of int4 what is cut off of it: 8 of 11 steps
    # are left at least. 0 would mean that nothing was rounded.
    assert 1e-4 < (error / largest).max() <= worst


PROJ = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("gptq", {f"{PROJ}.qzeros": None}, rf"missing \(1\):\n +{PROJ}.qzeros"),
        ("gptq", {f"{PROJ}.qweight": np.zeros((8, 8), "i4")}, r"qweight: expected \[16, 384\]"),
        ("gptq", {f"{PROJ}.qweight": np.zeros((16, 384), "f4")}, "expected int32, found float32"),
        ("gptq", {f"{PROJ}.qzeros": np.zeros((4, 48), "i4")}, "sym is true. Set it to false"),
        ("gptq order", {f"{PROJ}.g_idx": np.zeros(128, "i4")}, "expected 32 inputs in each"),
        ("awq", {f"{PROJ}.weight": np.zeros((384, 128), "f4")}, rf"unexpected .*\n +{PROJ}.weight"),
        ("compressed int8", {f"{PROJ}.weight": np.zeros((384, 128), "f4")}, "expected int8"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, case: str, changes: Any, message: str):
    folder, _ = stored(tmp_path / "m", case, **changes)
    with pytest.raises(CheckpointError, match=message):
        loaded(folder, platform="gpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' are not supported; supported are awq"),
        ({"quant_method": "gptq", "bits": 3}, r"quantization_config.bits is 3; supported: 4, 8"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size is 0"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version is 'gemv'"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, r"\[64, 64\]; supported"),
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.mlp"]},
            "'model.layers.0.mlp.gate_proj'; supported: lists with no matrix of a layer",
        ),
        (
            CASES["compressed int4"][0] | {"ignore": ["re:.*down_proj"]},
            "one format for all matrices of layers",
        ),
        (CASES["compressed int4"][0] | {"format": "marlin-24"}, "'marlin-24'; supported"),
    ],
)
def test_unsupported_options_are_named(options: dict[str, Any], message: str):
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_hf({**CONFIG, "quantization_config": options})


def test_blocks_that_do_not_divide_the_inputs_are_named(tmp_path: Path):
    config = {**CONFIG, "head_dim": 16, "quantization_config": CASES["fp8 blocks"][0]}
    folder = tiny.write_folder(tmp_path / "m", config, {"a": np.zeros(1, np.float32)})
    for platform in ("cpu", "gpu"):
        with pytest.raises(CheckpointError, match="64 inputs cannot be cut into groups of 128"):
            loaded(folder, platform=platform)


def test_a_quantized_checkpoint_is_not_quantized_again():
    config = ModelConfig.from_hf({**CONFIG, "quantization_config": CASES["awq"][0]})
    assert wanted_quantization(config, "int4") == config.quantization
    with pytest.raises(
        ConfigError, match=r"QUANTIZATION is int8, but .* quantized already, as Int4"
    ):
        wanted_quantization(config, "int8")


def test_experts_are_not_quantized():
    config = cases.CASES["qwen3_moe"].config
    with pytest.raises(ConfigError, match="int8 is for models without experts"):
        wanted_quantization(ModelConfig.from_hf(config), "int8")


EXPERTS: dict[str, Any] = cases.CASES["qwen2_moe"].config | SIZES | {
    "num_experts": 4, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 384
}  # fmt: skip


def stored_experts(
    folder: Path, case: str, changes: dict[str, Any] | None = None
) -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint with experts, each a tensor of its own, and the matrices that it stands for."""
    quantization_config, pack = CASES[case]
    rng = np.random.default_rng(0)
    tensors, matrices = {}, {}
    for name, values in tiny.weights(EXPERTS).items():
        layer, is_expert, rest = name.partition(".experts.")
        if is_expert:
            packed = [pack(rng, *value.shape) for value in values]
            matrices[name] = np.stack([matrix for _, matrix in packed])
            for e, (parts, _) in enumerate(packed):
                prefix = f"{layer}.experts.{e}.{rest.removesuffix('weight')}"
                tensors |= {prefix + part: array for part, array in parts.items()}
        elif name.endswith("_proj.weight"):
            parts, matrices[name] = pack(rng, *values.shape)
            tensors |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
        else:
            tensors[name] = matrices[name] = values
    tensors = {k: v for k, v in {**tensors, **(changes or {})}.items() if v is not None}
    config = {**EXPERTS, "quantization_config": quantization_config}
    return tiny.write_folder(folder, config, tensors), matrices


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_experts_of_every_encoding_are_read_as_plain_numbers(tmp_path, case: str, platform: str):
    folder, matrices = stored_experts(tmp_path / "m", case)
    kept, _, params = loaded(folder, platform=platform)
    assert kept.of("model.layers.0.mlp.gate") == PLAIN
    experts = [name for name in params if ".experts." in name]
    assert len(experts) == 3
    for name in experts:
        expected = matrices[name].astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_allclose(np.asarray(params[name]), expected, rtol=2**-7)
    for module in ("self_attn.k_proj", "mlp.shared_expert.down_proj"):
        if platform == "gpu":
            got = matrix_of(kept, params, f"model.layers.0.{module}")
            expected = matrices[f"model.layers.0.{module}.weight"]
            np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("tp_size", "ep_size"), [(2, 1), (2, 2)])
def test_every_shard_of_quantized_experts_is_its_slice(tmp_path, tp_size: int, ep_size: int):
    folder, matrices = stored_experts(tmp_path / "m", "fp8 blocks")
    checkpoint = open_checkpoint(folder)
    model, specs, view = in_formats(checkpoint, None, FP32, "gpu")
    params = load_params(view, specs, make_mesh(tp_size, ep_size=ep_size, model=model))
    for name in (name for name in params if ".experts." in name):
        expected = matrices[name].astype(ml_dtypes.bfloat16).astype(np.float32)
        for shard in params[name].addressable_shards:
            np.testing.assert_allclose(np.asarray(shard.data), expected[shard.index], rtol=2**-7)


@pytest.mark.parametrize(
    "skipped",
    [
        ["gate", "e_score_correction_bias", "lm_head"],  # MiniMaxAI/MiniMax-M2
        ["lm_head", "model.layers.0.input_layernorm", "model.layers.0.mlp.gate"],  # Qwen3 FP8
    ],
)
def test_lists_of_what_is_not_quantized_may_name_routers(tmp_path: Path, skipped: list[str]):
    folder, _ = stored_experts(tmp_path / "m", "fp8 blocks")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = skipped
    (folder / "config.json").write_text(json.dumps(config))
    kept, _, params = loaded(folder, platform="gpu")
    assert kept.layers != PLAIN and params["model.layers.0.mlp.gate.weight"].dtype == np.float32


def test_an_expert_without_its_scales_is_named(tmp_path: Path):
    name = "model.layers.0.mlp.experts.2.up_proj.weight_scale_inv"
    folder, _ = stored_experts(tmp_path / "m", "fp8 blocks", {name: None})
    with pytest.raises(CheckpointError, match=r"experts\.2\.up_proj should have weight_scale_inv"):
        open_checkpoint(folder)


def test_an_expert_that_was_left_plain_is_read_as_it_is(tmp_path: Path):
    module, shape = "model.layers.0.mlp.experts.2.up_proj", (256, 128)
    plain = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    folder, _ = stored_experts(
        tmp_path / "m",
        "fp8 blocks",
        {f"{module}.weight": plain, f"{module}.weight_scale_inv": None},
    )
    view = open_checkpoint(folder)
    np.testing.assert_array_equal(view.read(f"{module}.weight"), plain)


def test_int4_takes_the_largest_group_that_divides_every_matrix():
    config = ModelConfig.from_hf(tiny.config())  # 64, 96 and 64 inputs
    assert wanted_quantization(config, "int4").layers == Int4(32)
    with pytest.raises(ConfigError, match=r"groups of 64 .*\[32, 16, 8\] do"):
        wanted_quantization(config, "int4", 64)
