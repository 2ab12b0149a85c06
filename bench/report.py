"""How results are shown and kept: tables on the console, JSON with what a repetition needs."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = ("rtpjax", "jax", "jaxlib", "flax", "transformers", "torch")


def environment() -> dict[str, object]:
    """Returns command line, date, package versions (None where absent) and the machine."""
    return {
        "command": shlex.join(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "cpu": cpu_model(),
        "num_cpus": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Returns the processor's name; `platform.processor()` is empty on most Linux systems."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def busy_share(seconds: float = 1.0) -> float | None:
    """Returns the share of all cores that others keep busy now, None where it is not known."""
    if not Path("/proc/stat").exists():
        return None
    before = _cpu_ticks()
    time.sleep(seconds)
    idle, total = (after - b for after, b in zip(_cpu_ticks(), before, strict=True))
    return 1.0 - idle / max(total, 1)


def _cpu_ticks() -> tuple[int, int]:
    """Returns the ticks all cores were idle, and all their ticks (`man proc_stat`)."""
    # user nice system idle iowait irq softirq steal; guest time, which follows, is part of user.
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def write_json(path: str | None, kind: str, results: dict[str, object]) -> None:
    """Writes results with their environment; does nothing without a path."""
    if path is None:
        return
    document = {"benchmark": kind, "environment": environment(), **results}
    Path(path).write_text(json.dumps(document, indent=2) + "\n")
    print(f"wrote {path}")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a text table: the first column left, the others right, numbers with three digits."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *rest]))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
