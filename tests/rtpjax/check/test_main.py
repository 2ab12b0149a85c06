"""The command, on a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from rtpjax import cli
from rtpjax.check.__main__ import main
from rtpjax.errors import CheckpointError


def no_model(named, load_format):
    raise CheckpointError(f"{named}: no such folder.")


def no_checkpoint(path: Path):
    raise AssertionError


OPTIONS = {"find_model": no_model, "open_checkpoint": no_checkpoint}


def test_a_table_and_its_status(capsys):
    assert main(["--only", "grouped", "--no-generation"], **OPTIONS) == 0
    text = capsys.readouterr().out
    assert "no GPU here, kernels run in interpret mode" in text
    assert "grouped_matmul/pallas" in text
    assert "0 failed, 0 not run" in text


def test_a_line_of_json_for_each_result(capsys):
    """A model that is not there is one of them."""
    argv = ["--only", "grouped", "--implementation", "xla", "--model", "nowhere", "--json"]
    assert main(argv, **OPTIONS) == 1
    first, kernel, model, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["interpreted"]
    assert (kernel["op"], kernel["implementation"]) == ("grouped_matmul", "xla")
    assert kernel["status"] == "skipped"
    assert (model["status"], model["detail"]) == ("FAILED", "nowhere: no such folder.")
    assert (last["ok"], last["checks"], last["failed"]) == (False, 2, 1)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--only", "nothing"], "No op's name contains 'nothing'; ops: row_matmul, "),
        (["--implementation", "cuda"], "No op has an implementation 'cuda'; known: pallas, "),
        (["--parallel", "0"], "at least one thread"),
    ],
)
def test_a_setting_without_a_meaning(argv, said, capsys):
    assert main(argv, **OPTIONS) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert said in error


def test_no_device(capsys, monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", fail)
    assert main([], **OPTIONS) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert "JAX finds no device" in error
    assert "nvidia-smi" in error


def test_a_gpu_that_is_not_known(capsys):
    assert main(["--only", "grouped", "--gpu", "h900"], **OPTIONS) == 2
    assert "GPU 'h900' is not known" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_with_interpreted_kernels(capsys):
    assert cli.main(["check", "--only", "grouped", "--json"]) == 0
    results = map(json.loads, capsys.readouterr().out.splitlines())
    [generation] = [r for r in results if r.get("op") == "generation"]
    assert generation["status"] == "ok"
    assert "18 of 18 tokens" in generation["detail"]
