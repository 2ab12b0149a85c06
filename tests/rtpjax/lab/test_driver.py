"""Real processes: one that is killed or late takes nothing of the others with it."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rtpjax.lab import cli, driver, record

ROOT = Path(__file__).parents[3]


def visit(tmp_path: Path, *stages: str, deadline_s: float = 300) -> driver.Visit:
    arguments = ["--small", "--out", str(tmp_path / "out"), "--stages", ",".join(stages)]
    arguments += ["--deadline", str(deadline_s)]
    return cli.visit_of(cli.parser().parse_args(arguments), arguments, tmp_path / "cache")


def kill_when_it_runs(stage: str) -> None:
    """Kills the stage's process once it has begun to measure or compile."""
    while True:
        for process in psutil.Process().children(recursive=True):
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if "rtpjax.lab.child" in command and f'"stage": "{stage}"' in command[-1]:
                os.kill(process.pid, signal.SIGKILL)
                return
        time.sleep(0.05)


def test_a_killed_stage_and_a_late_one_cost_only_themselves(tmp_path, monkeypatch):
    late = dataclasses.replace(driver.STAGES["forward"], limit_s=0.2)
    monkeypatch.setitem(driver.STAGES, "forward", late)
    made = visit(tmp_path, "facts", "moe", "forward", "facts")
    others = set(psutil.Process().children(recursive=True))
    killer = threading.Thread(target=kill_when_it_runs, args=("moe",))
    killer.start()
    ends = driver.drive(made)
    killer.join()
    assert [end.name for end in ends] == ["facts", "moe", "forward", "facts"]
    first, killed, late, last = (end.outcome for end in ends)
    assert (first, last) == ("ok", "ok")
    assert killed.startswith("signal 9") and late.startswith("ended after its limit of 0 s")
    lines = record.read(made.results)
    assert sum(line.get("id") == "facts.first_program" for line in lines) == 2
    assert {line["id"] for line in lines if "error" in line} == {"moe", "forward"}
    page = (made.out / "lab.md").read_text()
    assert "| moe | signal 9" in page and "facts.first_program" in page
    assert "===== facts" in (made.out / "logs.txt").read_text()
    assert set(psutil.Process().children(recursive=True)) <= others


def test_no_time_left_is_said_and_nothing_hangs(tmp_path):
    ends = driver.drive(visit(tmp_path, "facts", "moe", deadline_s=1))
    assert [end.outcome for end in ends] == ["left out: no time was left"] * 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--small", "--stages", "facts,nonsense"], "There is no stage nonsense; there are facts"),
        (["--small", "--model", "nonsense"], "neither a config.json"),
        (["--small", "--deadline", "0"], "--deadline is 0; it takes seconds, over 0."),
        ([], "nvidia-smi finds no NVIDIA GPU here. `rtpjax lab --small`"),
    ],
)
def test_what_has_no_meaning_is_one_line(arguments, expected, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rtpjax.cli", "lab", "--out", str(tmp_path / "out"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PATH": str(tmp_path)},
    )
    assert done.returncode == 2
    assert expected in done.stderr and done.stderr.count("\n") == 1


def test_results_of_another_visit_are_not_written_over(tmp_path):
    made = visit(tmp_path, "facts")
    made.results.write_text("{}\n")
    with pytest.raises(cli.ConfigError, match="has results of another visit"):
        visit(tmp_path, "facts")
