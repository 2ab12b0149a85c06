"""What the Makefile and .ci/run choose for a machine, with programs that say they are others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(command: list[str], path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "PATH": f"{path}:/usr/bin:/bin", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize(
    ("nvidia_smi", "extra", "said"),
    [
        ("echo 580.65.06; echo 580.65.06", ",cuda13", ""),
        ("echo 610.10", ",cuda13", ""),
        ("echo 579.99", ",cuda12", ""),
        ("echo 525.60.13", ",cuda12", ""),
        ("echo 470.223.02", "", "NVIDIA driver 470.223.02 is too old for CUDA 12"),
        ("echo 'NVIDIA-SMI has failed: no driver'; exit 9", "", ""),
        ("echo 'No devices were found'; exit 6", "", ""),
        ("exit 127", "", ""),
    ],
)
def test_the_cuda_that_a_driver_runs(
    tmp_path: Path, nvidia_smi: str, extra: str, said: str
) -> None:
    program(tmp_path / "nvidia-smi", nvidia_smi)
    done = run([".ci/jax_extra"], tmp_path)
    assert done.stdout.strip() == extra
    assert done.stderr.startswith(said) and done.stderr.count("\n") == bool(said)
    made = run(["make", "--dry-run", "serve", f"VENV={tmp_path}/venv"], tmp_path)
    assert f'-e ".[base{extra}]"' in made.stdout


def test_the_newest_python_is_found_and_one_that_does_not_run_is_not(tmp_path: Path) -> None:
    minor = sys.version_info[1]
    says = "echo {}".format
    program(tmp_path / "bin" / f"python3.{minor + 1}", says(minor + 1))
    program(tmp_path / "bin" / f"python3.{minor + 3}", "echo not installed >&2; exit 127")
    program(tmp_path / "bin" / f"python3.{minor + 4}-config", says(minor + 4))
    for micro in (9, 11):
        version = tmp_path / "pyenv" / "versions" / f"3.{minor + 2}.{micro}"
        program(version / "bin" / "python3", says(minor + 2))
    command = [sys.executable, ".ci/newest_python"]
    folder = tmp_path / "bin"
    found = run(command, folder, PYENV_ROOT=str(tmp_path / "pyenv")).stdout.strip()
    assert found == str(tmp_path / "pyenv/versions" / f"3.{minor + 2}.11" / "bin/python3")
    found = run(command, folder, PYENV_ROOT=str(tmp_path / "none")).stdout.strip()
    assert found == str(folder / f"python3.{minor + 1}")
    assert run(command, tmp_path, PYENV_ROOT=str(tmp_path / "none")).stdout.strip() in (
        "",
        *(f"{folder}/python3.{n}" for folder in ("/usr/bin", "/bin") for n in range(minor + 1, 30)),
    )
