"""The gate for skips, in runs of pytest of its own, with and without workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = {
    "test_in_a_test.py": "import pytest\ndef test_it():\n    pytest.skip('nothing here')\n",
    "test_whole_file.py": "import pytest\npytest.importorskip('no_such_module')\n",
    "test_marked.py": "import pytest\n@pytest.mark.skip(reason='later')\ndef test_it(): pass\n",
    "test_allowed.py": (
        "import pytest\ndef test_it():\n    pytest.skip('the format has no such names')\n"
    ),
    "test_expected.py": "import pytest\n@pytest.mark.xfail\ndef test_it(): assert False\n",
    "test_good.py": "def test_it(): pass\n",
}


def run(folder: Path, names: list[str], *options: str, ci: str) -> subprocess.CompletedProcess[str]:
    for name in names:
        (folder / name).write_text(TESTS[name])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    own = {"CI": ci, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null"]
    return subprocess.run(
        [*command, "-p", "xdist.plugin", "-p", "tests.skips", *options],
        cwd=folder,
        env={**environment, **own},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "workers"])
def test_a_skip_that_is_not_listed_fails_the_run(tmp_path: Path, workers: list[str]) -> None:
    done = run(tmp_path, list(TESTS), *workers, ci="true")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    failed = {
        line.removeprefix("FAILED ").split(": ", 1)[0]: line
        for line in done.stdout.splitlines()
        if line.startswith("FAILED")
    }
    assert failed.keys() == {
        "test_in_a_test.py::test_it",
        "test_whole_file.py",
        "test_marked.py::test_it",
    }
    assert "nothing here" in failed["test_in_a_test.py::test_it"]
    assert "no_such_module" in failed["test_whole_file.py"]


def test_listed_skips_and_expected_failures_pass(tmp_path: Path) -> None:
    names = ["test_allowed.py", "test_expected.py", "test_good.py"]
    done = run(tmp_path, names, ci="true")
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr


def test_elsewhere_a_skip_is_a_skip(tmp_path: Path) -> None:
    done = run(tmp_path, list(TESTS), ci="")
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
