"""Plans: what fits, what is offered instead, and what people and scripts read."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rtpjax import config, gpus
from rtpjax.config import EngineSettings
from rtpjax.models import ModelConfig
from rtpjax.models.quantization import quantization_of
from rtpjax.plan import presets
from rtpjax.plan.__main__ import main
from rtpjax.plan.analyze import StepReport
from rtpjax.plan.plan import as_dict, make_plan
from rtpjax.plan.report import table


def plan(model: str, gpu: str, **settings):
    hf = ModelConfig.from_hf(presets.load(model))
    return make_plan(hf, gpus.load(gpu), EngineSettings(**settings), compile_steps=False)


def test_cache_is_what_weights_and_reserve_leave():
    found = as_dict(plan("llama-3.1-8b", "h100", max_model_len=32768))
    free = int(84942979072 * 0.75) - 2 * 8_030_261_248 - 2 * config.GIB
    pages = free // (64 * 131072)
    assert found["fits"]
    assert found["cache_tokens"] == (pages - 1) * 64
    assert found["requests"][-1] == {"tokens": 32768, "requests": (pages - 1) // 512}
    assert found["requests"][0] == {"tokens": 1024, "requests": 256}  # max_num_seqs


def test_the_server_sizes_its_cache_with_the_same_numbers():
    whole = plan("qwen3-32b", "h100", tp_size=4, max_model_len=8192)
    assert whole.engine is not None
    free = config.gpu_cache_bytes(whole.free_bytes, whole.reserved_bytes, 4)
    most = 256 * (8192 // 64) + 1
    assert whole.engine.num_pages == min(free // (64 * 4 * whole.needs.token_bytes), most)


def test_what_does_not_fit_says_what_does():
    found = plan("qwen3-32b", "h100")
    assert found.problem is not None
    assert "61.0 GiB on each GPU" in found.problem
    assert found.instead == ["--tp 2", "--gpu h200"]
    long = plan("llama-3.1-8b", "l4", max_model_len=131072, tp_size=2)
    assert long.problem is not None
    assert [text.split()[0] for text in long.instead] == ["--max-model-len", "--tp", "--gpu"]
    shorter = int(long.instead[0].split()[1])
    assert plan("llama-3.1-8b", "l4", max_model_len=shorter, tp_size=2).problem is None
    assert plan("llama-3.1-8b", "l4", max_model_len=shorter + 64, tp_size=2).problem is not None


def test_limits_are_for_what_fits_together():
    found = as_dict(plan("llama-3.1-8b", "h100", max_model_len=32768))
    rows = [r["rows"] for r in found["limits"]["tpot"] if r["context"] == 32768]
    assert rows == [1, 8]  # 10 fit


def test_a_quantized_cache_holds_more_tokens():
    plain, int8 = (
        as_dict(plan("llama-3.1-8b", "h100", max_model_len=32768, kv_cache_dtype=dtype))
        for dtype in (None, "int8")
    )
    free = int(84942979072 * 0.75) - 2 * 8_030_261_248 - 2 * config.GIB
    page = 64 * 65536 + 32 * 2 * 8 * 4  # and a scale for each layer, keys and values, and head
    assert int8["cache_tokens"] == (free // page - 1) * 64
    assert int8["memory_per_gpu"]["cache_bytes"] == free // page * page
    assert int8["cache_tokens"] > 1.99 * plain["cache_tokens"]


def test_int8_weights_of_one_of_four_gpus():
    """Qwen2.5-72B, counted by hand."""
    D, F, kv, V = 8192, 29568, 1024, 152064
    layer = (
        (2 * D * D + 2 * D * kv + 3 * D * F) // 4  # int8
        + 4 * ((D + 2 * kv + 2 * F) // 4 + 2 * D)  # scales; those of o_proj and down_proj on all
        + 2 * (D + 2 * kv) // 4  # biases
        + 2 * 2 * D  # norms
    )
    beside = 2 * V * D + V * D // 4 + V + 2 * D  # the whole embedding in bf16; the head's scales
    found = plan("qwen2.5-72b", "a100", tp_size=4, quantization="int8", max_model_len=32768)
    assert found.problem is None
    assert found.needs.weights_bytes == 80 * layer + beside


def test_quantized_formats_are_those_of_the_server():
    bits = {
        method: plan("llama-3.1-8b", "h100", quantization=method).needs.model.quantization.layers
        for method in ("int8", "int4", "fp8")
    }
    assert {method: kept.bits for method, kept in bits.items()} == {"int8": 8, "int4": 4, "fp8": 8}
    split = plan("llama-3.1-8b", "h100", tp_size=2, quantization="int8").needs.model.quantization
    assert split == quantization_of("int8", is_tied=False)


def test_the_table_says_what_gpus_send_each_other():
    report = StepReport(
        temp_bytes=1 << 20,
        argument_bytes=1,
        moved_bytes=103,
        least_bytes=100,
        kernels_per_layer=13.0,
        collectives_per_layer={"all-reduce": 2.0},
        collectives_beside={"all-reduce": 1, "all-gather": 1},
        unaliased=[],
        copied=[],
        gathered=[],
        library_calls=[],
        no_tensor_core=[],
        max_registers=None,
        spill_bytes=None,
        spilling=[],
        max_shared_bytes=0,
        buffers_in_flight={},
        host_waits=[],
        graphs=1,
        launches=0,
    )
    found = plan("qwen3-32b", "h100", tp_size=4, max_model_len=8192)

    def text(report: StepReport) -> str:
        return table(as_dict(dataclasses.replace(found, steps={"decode": report})))

    said = "2 all-reduce a layer, 1 all-gather, 1 all-reduce beside the layers, no weight is sent"
    assert said in text(report)
    gathered = text(dataclasses.replace(report, gathered=["lm_head.weight"]))
    assert "no weight is sent" not in gathered
    assert "gathered: lm_head.weight" in gathered


def run(*argv: str) -> int:
    return main(argv, read_config=lambda path: pytest.fail(f"read {path}"))


def test_json_and_table(capsys):
    assert run("smollm2-135m", "--gpu", "l4", "--no-compile", "--json") == 0
    assert json.loads(capsys.readouterr().out)["memory_per_gpu"]["weights_bytes"] == 269_030_016
    assert run("smollm2-135m", "--gpu", "l4", "--no-compile") == 0
    text = capsys.readouterr().out
    assert "nothing here was measured" in text
    assert "temporaries   unknown" in text


def test_a_folder_is_read_without_weights(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(presets.load("qwen2.5-0.5b")))
    assert run(str(tmp_path), "--gpu", "a100", "--no-compile", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory_per_gpu"]["weights_bytes"] == 988_065_536


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("smollm2-135m", "--gpu", "tpu"), "known are a100"),
        (("no-such-model", "--gpu", "l4"), "Presets: gemma-3-27b, glm-4.5-air"),
        (("qwen3-32b", "--gpu", "l4", "--tp", "3"), "one of [1, 2, 4, 8, 16, 32, 64, 128]"),
        (("smollm2-135m", "--gpu", "a100", "--kv-cache-dtype", "fp8"), "Use an int8 cache"),
        (("smollm2-135m", "--gpu", "l4", "--tp", "0"), "--tp must be at least 1"),
    ],
)
def test_bad_questions_name_the_choices(argv, said, capsys):
    assert run(*argv, "--no-compile") == 2
    assert said in capsys.readouterr().err


def test_does_not_fit_is_the_exit_status(capsys):
    assert run("qwen3-32b", "--gpu", "l4", "--no-compile") == 1
    assert "These fit: " in capsys.readouterr().out
