"""Runs the stages one after the other, each in a process of its own with a limit.

The process of the next stage starts while the one before it runs, imports what it needs and waits
for a line on stdin: no stage waits for imports. Only then it starts the GPU, so that one process
has it at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from rtpjax.lab import record, report
from rtpjax.lab.report import StageEnd
from rtpjax.lab.stages import STAGES

_LEAST_S = 10.0  # less time is not worth a stage's start
_MAX_LOG = 60_000  # characters of each stage's log that are kept
_SCRATCH_BYTES = 12 << 20


@dataclasses.dataclass(frozen=True)
class Visit:
    """What the command line asked for.

    Attributes:
        out: Folder of the results.
        stages: In the order in which they run.
        deadline_s: Seconds that everything may take.
        is_small: In miniature, on the CPU.
        model: A file with the model's config.json.
        model_name: What the report calls it.
        gpu: Data sheet; None goes by the device.
        cache: Folder of compiled programs.
        command: As it was typed.
    """

    out: Path
    stages: Sequence[str]
    deadline_s: float
    is_small: bool
    model: Path
    model_name: str
    gpu: str | None
    cache: Path
    command: str

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"


class _Process:
    """A stage's process, started ahead."""

    def __init__(self, visit: Visit, name: str, scratch: Path, began: float):
        self.stage = STAGES[name]
        self.log_path = scratch / f"{name}.log"
        self._log: IO[bytes] = self.log_path.open("wb")
        request = {
            "stage": name,
            "results": str(visit.results),
            "scratch": str(scratch),
            "cache": str(visit.cache),
            "model": str(visit.model),
            "gpu": visit.gpu,
            "is_small": visit.is_small,
            "began": began,
        }
        own = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", **self.stage.environment}
        if visit.is_small:
            own["JAX_PLATFORMS"] = "cpu"
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", "rtpjax.lab.child", json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | own,
            start_new_session=True,
        )

    def run(self, limit_s: float) -> str:
        """Lets it go; how it ended."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(b"go\n", timeout=limit_s)
        return self._outcome()

    def _outcome(self) -> str:
        status = self._process.wait()
        if status == 0:
            return "ok"
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        lines = self.log_path.read_text(errors="replace").splitlines()
        said = next((line for line in reversed(lines) if line.strip()), "")
        return f"{how}: {said[:200]}"

    def end(self) -> None:
        """Ends it, and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._log.close()


def drive(visit: Visit) -> list[StageEnd]:
    """Runs all stages; results are on the disk as they come, whatever happens to this process."""
    visit.out.mkdir(parents=True, exist_ok=True)
    began, ends = time.time(), []
    previous = signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="rtpjax-lab-") as folder:
        try:
            for end in _run(visit, Path(folder), began):
                ends.append(end)
                print(f"[{time.time() - began:4.0f} s] {end.name}: {end.outcome}", flush=True)
                _write_page(visit, ends)
        except KeyboardInterrupt:
            print("Interrupted: what was measured until here is kept.", file=sys.stderr)
        finally:
            signal.signal(signal.SIGTERM, previous)
            _keep(visit, Path(folder))
            _write_page(visit, ends)
    return ends


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _run(visit: Visit, scratch: Path, began: float) -> Any:
    """How each stage ended, in order."""
    wanted = []
    for name in visit.stages:
        if STAGES[name].uses == "torch" and importlib.util.find_spec("torch") is None:
            yield StageEnd(name, "left out: torch is not installed", 0.0)
        else:
            wanted.append(name)
    with contextlib.ExitStack() as running:

        def start(name: str) -> _Process:
            process = _Process(visit, name, scratch, began)
            running.callback(process.end)
            return process

        following = start(wanted[0]) if wanted else None
        for i, name in enumerate(wanted):
            current, following = following, None
            assert current is not None
            if i + 1 < len(wanted):
                following = start(wanted[i + 1])
            left = visit.deadline_s - (time.time() - began)
            if left < _LEAST_S:
                yield StageEnd(name, "left out: no time was left", 0.0)
                current.end()
                continue
            limit, started = min(current.stage.limit_s, left), time.time()
            try:
                outcome = current.run(limit)
            except subprocess.TimeoutExpired:
                outcome = f"ended after its limit of {limit:.0f} s"
            finally:
                current.end()
            if outcome != "ok":
                record.Recorder(visit.results, name, began).failed(name, outcome)
            yield StageEnd(name, outcome, time.time() - started)


def _write_page(visit: Visit, ends: Sequence[StageEnd]) -> None:
    lines = record.read(visit.results)
    text = report.page(
        lines, ends, visit.model_name, command=visit.command, is_small=visit.is_small
    )
    (visit.out / "lab.md").write_text(text)


def _keep(visit: Visit, scratch: Path) -> None:
    """Logs as one file, and what else the stages wrote as another: few files travel well."""
    with (visit.out / "logs.txt").open("w") as file:
        for path in sorted(scratch.glob("*.log"), key=lambda path: path.stat().st_mtime):
            text = path.read_text(errors="replace")
            cut = len(text) > _MAX_LOG
            kept = f"{text[: _MAX_LOG // 4]}\n...\n{text[-_MAX_LOG * 3 // 4 :]}" if cut else text
            file.write(f"===== {path.stem}\n{kept}\n")
    others = [path for path in scratch.iterdir() if path.suffix != ".log"]
    if others:
        with tarfile.open(visit.out / "files.tgz", "w:gz") as tar:
            for path in sorted(others):
                size = sum(f.stat().st_size for f in path.rglob("*")) or path.stat().st_size
                if size <= _SCRATCH_BYTES:
                    tar.add(path, path.name)
