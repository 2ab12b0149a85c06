"""The command, on a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rtpjax import cli
from rtpjax.check.__main__ import main
from rtpjax.errors import CheckpointError


def no_model(named, load_format):
    raise CheckpointError(f"{named}: no such folder.")


def no_checkpoint(path: Path):
    raise AssertionError


def test_a_table_and_its_status(capsys):
    options = {"find_model": no_model, "open_checkpoint": no_checkpoint}
    assert main(["--only", "grouped", "--no-generation"], **options) == 0
    text = capsys.readouterr().out
    assert "no GPU here, kernels run in interpret mode" in text
    assert "grouped_matmul/pallas" in text
    assert "0 failed" in text
    assert main(["--only", "nothing", "--no-generation"], **options) == 1
    assert main(["--only", "grouped", "--model", "nowhere", "--json"], **options) == 1
    found = json.loads(capsys.readouterr().out.split("\n", 1)[1].split("failed.\n", 1)[1])
    assert (found["interpreted"], found["ok"]) == (True, False)
    assert found["results"][-1]["status"] == "FAILED"
    assert found["results"][-1]["detail"] == "nowhere: no such folder."


def test_a_gpu_that_is_not_known(capsys):
    options = {"find_model": no_model, "open_checkpoint": no_checkpoint}
    assert main(["--only", "grouped", "--gpu", "h900"], **options) == 2
    assert "GPU 'h900' is not known" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_with_interpreted_kernels(capsys):
    assert cli.main(["check", "--only", "grouped", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    [generation] = [r for r in results if r["what"] == "generation"]
    assert generation["status"] == "ok"
    assert "18 of 18 tokens" in generation["detail"]
