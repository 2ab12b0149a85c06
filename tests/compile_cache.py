"""Where tests keep compiled programs: one folder for all workers, child processes and runs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import jax


def folder() -> Path:
    """The folder of this jaxlib on this kind of processor.

    XLA's programs for CPUs are machine code for the instructions of the host that compiled them,
    and a folder that CI keeps may come to another one: the path says which they are.
    """
    root = Path(os.environ.get("RTPJAX_CACHE", "~/.cache/rtpjax")).expanduser()
    host = hashlib.sha256(f"{platform.machine()} {_instructions()}".encode()).hexdigest()[:12]
    return root / "tests" / f"jaxlib-{importlib.metadata.version('jaxlib')}-{host}"


def _instructions() -> str:
    """What the processor says that it can do; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    kinds = ("flags", "Features", "model name")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))


def enable() -> None:
    """Sets the folder for this process and for those that it starts."""
    settings = {
        "jax_compilation_cache_dir": str(folder()),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
