"""GPUs as data files."""

from __future__ import annotations

import pytest

from rtpjax import gpus
from rtpjax.errors import ConfigError


@pytest.mark.parametrize("name", gpus.names())
def test_every_file_is_read(name):
    gpu = gpus.load(name)
    assert gpu.name == name
    assert gpu.full_name.startswith("NVIDIA ")
    # Of any GPU worth describing.
    assert gpu.peak("bfloat16") / gpu.memory_bandwidth > 50
    assert gpu.memory_bytes > 10e9


def test_values_of_the_data_sheets():
    assert gpus.load("H100").peak("bfloat16") == 989.4e12
    assert gpus.load("a100").memory_bandwidth == 2_039_040_000_000
    assert gpus.load("l4").compute_capability == (8, 9)
    assert gpus.load("b200").ptx_target == "sm_100a"
    assert gpus.load("l40s").ptx_target == "sm_89"


def test_a_format_without_units_runs_as_bf16():
    assert gpus.load("a100").peak("float8_e4m3fn") == 312e12


def test_unknown_names_the_choices():
    with pytest.raises(ConfigError, match=r"'h1' is not known; known are a100, .*h200"):
        gpus.load("h1")


def test_a_file_of_the_users(tmp_path):
    from pathlib import Path

    text = (Path(gpus.__file__).parent / "l4.toml").read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace("300000000000", "200000000000"))
    assert gpus.load(str(mine)).memory_bandwidth == 200_000_000_000
    mine.write_text(text.replace("core_count", "cores"))
    with pytest.raises(ConfigError, match="not a description of a GPU"):
        gpus.load(str(mine))
    mine.write_text(text.replace("300000000000", "0"))
    with pytest.raises(ConfigError, match="must be positive"):
        gpus.load(str(mine))
