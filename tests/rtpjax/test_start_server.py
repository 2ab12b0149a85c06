"""Settings: flags over environment over defaults, and messages for what cannot be used."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from rtpjax.errors import CheckpointError, ConfigError
from rtpjax.settings import SETTINGS
from rtpjax.start_server import (
    _engine_settings,
    main,
    quantization_of,
    read_settings,
    resolve_checkpoint,
    warn_not_yet,
    with_model_type,
)


def test_a_flag_wins_over_the_environment_and_that_over_the_default():
    environment = {"START_PORT": "9000", "MAX_SEQ_LEN": "512"}
    settings = read_settings(["--start_port", "9001", "--tp-size=2"], environment)
    assert settings["START_PORT"] == 9001
    assert settings["MAX_SEQ_LEN"] == 512
    assert settings["TP_SIZE"] == 2
    assert settings["CHECKPOINT_PATH"] is None
    assert read_settings([], {})["START_PORT"] == 8088


def test_an_empty_variable_is_not_set():
    assert read_settings([], {"START_PORT": ""})["START_PORT"] == 8088


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("START_PORT", "http"),
        ("START_PORT", "70000"),
        ("MAX_SEQ_LEN", "0"),
        ("MAX_SEQ_LEN", "-5"),
        ("ACT_TYPE", "INT4"),
        ("REUSE_CACHE", "maybe"),
        ("LOG_LEVEL", "LOUD"),
        ("UNKNOWN_FIELDS", "drop"),
        ("GENERATION_CONFIG", "vllm"),
    ],
)
def test_a_bad_value_is_named(name, value):
    with pytest.raises(ConfigError, match=f"{name} is '{value}': "):
        read_settings([], {name: value})


@pytest.mark.parametrize(
    "setting", [s for s in SETTINGS if s.default is not None], ids=lambda s: s.name
)
def test_every_default_is_what_its_parser_makes(setting):
    if setting.default == ():
        assert setting.parse("") == ()
    else:
        assert setting.parse(str(setting.default)) == setting.default


def test_rtp_llm_settings_without_effect_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        warn_not_yet({"THINK_MODE": "0", "SP_TYPE": "eagle", "LORA_INFO": "{}", "EP_SIZE": "2"})
    assert {m.split("=")[0] for m in caplog.messages} == {"SP_TYPE", "LORA_INFO"}


def test_int8_mode_is_a_name_for_quantization():
    assert quantization_of(read_settings([], {"INT8_MODE": "1"})) == "int8"
    assert quantization_of(read_settings([], {"INT8_MODE": "1", "QUANTIZATION": "INT8"})) == "int8"
    assert quantization_of(read_settings(["--quantization", "Fp8"], {})) == "fp8"
    assert quantization_of(read_settings([], {})) is None
    with pytest.raises(ConfigError, match="contradiction"):
        quantization_of(read_settings([], {"INT8_MODE": "1", "QUANTIZATION": "int4"}))
    with pytest.raises(ConfigError, match="expected INT8, INT4 or FP8"):
        read_settings([], {"QUANTIZATION": "int3"})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"INT8_KV_CACHE": "1"}, "int8"),
        ({"FP8_KV_CACHE": "1", "INT8_KV_CACHE": "0"}, "fp8"),
    ],
)
def test_the_format_of_the_cache(environment, expected):
    assert _engine_settings(read_settings([], environment)).kv_cache_dtype == expected


def test_a_cache_has_one_format(capsys):
    assert main(["--start_port", "0", "--int8_kv_cache", "1", "--fp8_kv_cache", "1"]) == 1
    assert "INT8_KV_CACHE and FP8_KV_CACHE are both set" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there():
    with pytest.raises(CheckpointError, match="/no/such/model: no such file or folder"):
        resolve_checkpoint("/no/such/model", Path("unused"))


def test_model_type_names_an_architecture():
    config = {"architectures": ["Unheard"], "hidden_size": 8}
    assert with_model_type(config, "qwen_2")["architectures"] == ["Qwen2ForCausalLM"]
    assert with_model_type(config, "LlamaForCausalLM")["architectures"] == ["LlamaForCausalLM"]
    assert with_model_type(config, None) is config
    with pytest.raises(ConfigError, match=r"is .bert.; known are Gemma2.* LlamaForCausalLM"):
        with_model_type(config, "bert")


def test_main_says_why_it_cannot_start(capsys, monkeypatch):
    monkeypatch.delenv("CHECKPOINT_PATH", raising=False)
    status = main(["--checkpoint_path", "/no/such/model", "--start_port", "0"])
    assert status == 1
    assert "rtpjax cannot start: CHECKPOINT_PATH is /no/such/model" in capsys.readouterr().err


def test_random_weights_are_never_taken_by_accident(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no weights. Name its folder, or set LOAD_FORM"):
        resolve_checkpoint(str(tmp_path / "config.json"), tmp_path)
    with pytest.raises(CheckpointError, match=r"With LOAD_FORMAT=dummy it is a model of random"):
        resolve_checkpoint("llama-3.1-8b", tmp_path)
    assert resolve_checkpoint(str(tmp_path), tmp_path) == tmp_path
    assert resolve_checkpoint(str(tmp_path), tmp_path, "dummy") == tmp_path / "config.json"
    with pytest.raises(ConfigError, match="LOAD_FORMAT is 'pt': expected auto or dummy"):
        read_settings([], {"LOAD_FORMAT": "pt"})
