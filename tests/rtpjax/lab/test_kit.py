"""The kit, as far as it goes without an index; `make lab-kit-test` runs a whole one."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rtpjax.lab import kit
from rtpjax.lab.kit import KitError

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError\n"
            "ERROR: No matching distribution found for jax==0.11.2",
            "the package index cannot be reached; building the kit needs the network.",
        ),
        (
            "ERROR: Could not find a version that satisfies x (from versions: none)\n"
            "ERROR: No matching distribution found for llguidance<2,>=1.9",
            "there is no wheel of llguidance<2,>=1.9 for that machine (rtpjax/lab/machine.toml).",
        ),
        (
            "ERROR: Cannot install a and b\nERROR: ResolutionImpossible: see the docs",
            "the wheels cannot be had: ResolutionImpossible: see the docs",
        ),
    ],
)
def test_what_pip_says_is_one_line(stderr, line):
    assert kit._reason(stderr) == line


def test_no_network(monkeypatch, capsys, tmp_path: Path):
    """A real pip, and an index that is not there."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(kit, "find_python", lambda version: sys.executable)
    monkeypatch.setattr(kit, "_PIP_OPTIONS", ("--retries", "1", "--timeout", "1"))
    assert kit.main(["build", str(tmp_path / "kit")]) == 1
    told = capsys.readouterr().err
    assert (
        told
        == "lab-kit: the package index cannot be reached; building the kit needs the network.\n"
    )
    assert list(tmp_path.iterdir()) == []


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def fake_wheels(requirements, machine, wheels: Path) -> None:
    with zipfile.ZipFile(wheels / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "VALUE = 7")


def test_a_kit_has_what_the_lab_reads_and_starts(monkeypatch, tmp_path: Path, capsys):
    """The real sources and the real script; only what comes from the index is made up."""
    monkeypatch.setattr(kit, "missing", lambda machine: ["carried==1"])
    monkeypatch.setattr(kit, "_download", fake_wheels)
    monkeypatch.setattr(kit, "read_machine", lambda: {"python": VERSION})
    folder = tmp_path / "kit"
    write(folder / "left-over", "of an earlier kit")
    kit.build(folder)
    assert "1 wheels: carried" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["run.sh", "src", "wheels"]
    for name in ("rtpjax/plan/models/llama-3.1-8b.json", "bench/cli.py", "tests/golden/llama.npz"):
        assert (folder / "src" / name).is_file()
    # A folder with a module of ours in it is no trap, and arguments arrive as they are.
    write(tmp_path / "rtpjax" / "cli.py", "raise SystemExit('the wrong one')")
    code = (
        "import carried, sys, rtpjax.settings as s; print(carried.VALUE, s.__file__, sys.argv[1:])"
    )
    write(folder / "src" / "rtpjax" / "cli.py", code)
    for _ in range(2):  # the second time the wheels are unpacked already
        done = run(folder, "lab", "--out", "a b", cwd=tmp_path)
        assert done.stderr == ""
        assert done.stdout == f"7 {folder}/src/rtpjax/settings.py ['lab', '--out', 'a b']\n"


def run(folder: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(folder / "run.sh"), *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_another_python_is_refused(tmp_path: Path):
    script = Path(kit.__file__).with_name("run.sh").read_text()
    write(tmp_path / "run.sh", script.replace("@PYTHON@", "3.2"))
    done = run(tmp_path, "lab", cwd=tmp_path)
    assert done.returncode == 2
    assert f"the wheels here are for Python 3.2, and {sys.executable} is {VERSION}" in done.stderr


def test_a_kit_that_is_too_large(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(kit, "missing", lambda machine: [])
    monkeypatch.setattr(kit, "_download", fake_wheels)
    monkeypatch.setattr(kit, "MOST_BYTES", 100_000)
    with pytest.raises(KitError, match=r"more than 0; the largest: \w+"):
        kit.build(tmp_path / "kit")
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_that_cannot_be_unpacked(monkeypatch, tmp_path: Path):
    def with_data(command, *arguments, on):
        with zipfile.ZipFile(tmp_path / "x-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("x-1.data/purelib/x.py", "")

    monkeypatch.setattr(kit, "_pip", with_data)
    with pytest.raises(KitError, match="has to be installed, not unpacked"):
        kit._download(["x==1"], {}, tmp_path)


def test_other_failures_are_lines(capsys, tmp_path: Path):
    assert kit.main(["test", str(tmp_path), "none"]) == 1
    assert "no kit is there; run make lab-kit" in capsys.readouterr().err
    with pytest.raises(KitError, match=r"there is no Python 3\.2"):
        kit.find_python("3.2")
    assert kit.main(["bild"]) == 2
