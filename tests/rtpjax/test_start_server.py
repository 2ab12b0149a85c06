"""Settings: flags over environment over defaults, and messages for what cannot be used."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from rtpjax.config import DraftConfig
from rtpjax.errors import CheckpointError, ConfigError
from rtpjax.served_model import (
    draft_config,
    engine_settings,
    quantization_of,
    resolve_checkpoint,
    with_model_type,
)
from rtpjax.settings import SETTINGS
from rtpjax.start_server import keys_of, main, read_settings, warn_not_yet


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
        warn_not_yet({"THINK_MODE": "0", "SP_CHECKPOINT_PATH": "x", "LORA_INFO": "{}"})
    assert {m.split("=")[0] for m in caplog.messages} == {"SP_CHECKPOINT_PATH", "LORA_INFO"}


@pytest.mark.parametrize(
    ("given", "drafts"),
    [
        ({}, None),
        ({"SP_TYPE": "vanilla", "GEN_NUM_PER_CYCLE": "5"}, None),
        ({"SP_TYPE": "deterministic"}, (4, 2, 2)),
        ({"SP_TYPE": "ngram", "GEN_NUM_PER_CYCLE": "8", "SP_MIN_TOKEN_MATCH": "3"}, (8, 3, 3)),
        ({"SP_TYPE": "ngram", "SP_MIN_TOKEN_MATCH": "1", "SP_MAX_TOKEN_MATCH": "4"}, (4, 1, 4)),
        (
            {
                "SPECULATIVE_CONFIG": '{"method": "ngram", "num_speculative_tokens": 5, '
                '"prompt_lookup_min": 2, "prompt_lookup_max": 4}'
            },
            (5, 2, 4),
        ),
    ],
)
def test_drafts_are_set_as_rtp_llm_or_vllm_spell_it(given, drafts):
    found = draft_config(read_settings([], given))
    assert found == (drafts and DraftConfig(*drafts))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"SP_TYPE": "eagle3"}, "expected deterministic"),
        ({"SPECULATIVE_CONFIG": "ngram"}, "expected JSON"),
        ({"SPECULATIVE_CONFIG": '{"method": "eagle3"}'}, 'the "method" "ngram"'),
        ({"SPECULATIVE_CONFIG": '{"model": "x"}'}, "unknown: model"),
        ({"SPECULATIVE_CONFIG": '{"num_speculative_tokens": 0}'}, "at least 1"),
        ({"SP_TYPE": "ngram", "SP_MIN_TOKEN_MATCH": "3", "SP_MAX_TOKEN_MATCH": "2"}, "at most"),
    ],
)
def test_drafts_that_cannot_be_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        draft_config(read_settings([], given))


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
    assert engine_settings(read_settings([], environment)).kv_cache_dtype == expected


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


def test_keys_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# of the team\none\n\n  two#2 \n")
    settings = read_settings([], {"API_KEYS": "zero", "API_KEYS_FILE": str(path)})
    assert keys_of(settings, "API_KEYS") == ("zero", "one", "two#2")
    assert keys_of(settings, "ADMIN_API_KEY") == ()


@pytest.mark.parametrize("name", ["API_KEYS", "ADMIN_API_KEY"])
@pytest.mark.parametrize("content", [b"", b"# none\n", b"\xff\xfe", None])
def test_a_file_without_keys_opens_nothing(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    settings = read_settings([], {f"{name}_FILE": str(path)})
    with pytest.raises(ConfigError, match=rf"{name}_FILE is '{path}'"):
        keys_of(settings, name)


def test_a_key_in_a_flag_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    read_settings([], {"API_KEYS": "hidden"})
    assert not caplog.messages
    read_settings(["--api_keys", "seen"], {})
    assert "API_KEYS_FILE" in caplog.text and "seen" not in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CORS_ALLOW_ORIGINS", "chat.example.com"),
        ("CORS_ALLOW_ORIGINS", "https://a.example/path"),
        ("CORS_ALLOW_ORIGINS", "https://*.example"),
        ("CORS_ALLOW_ORIGINS", "null"),
        ("OPERATOR_HOSTS", "10.0.0.1/8"),
        ("OPERATOR_HOSTS", "everybody"),
    ],
)
def test_lists_of_origins_and_hosts(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        read_settings([], {name: value})


def test_origins_and_hosts() -> None:
    environment = {"CORS_ALLOW_ORIGINS": "https://a.example/, http://localhost:3000,*"}
    settings = read_settings([], environment | {"OPERATOR_HOSTS": "10.0.0.0/8, ::1"})
    origins = ("https://a.example", "http://localhost:3000", "*")
    assert settings["CORS_ALLOW_ORIGINS"] == origins
    assert [str(network) for network in settings["OPERATOR_HOSTS"]] == ["10.0.0.0/8", "::1/128"]
