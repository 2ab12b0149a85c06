"""Pythons that have clients which cannot be installed beside ours (`make test-all` makes them)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def client_python(name: str) -> str:
    """The Python of tests/e2e/clients/NAME.txt; skips the test where it was not made."""
    folder = os.environ.get("RTPJAX_CLIENTS")
    if not folder:
        pytest.skip("RTPJAX_CLIENTS is not set (make test-all sets it)")
    python = Path(folder) / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} is missing (make test-all makes it)")
    return str(python)
