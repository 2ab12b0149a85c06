"""What machine this is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp

from pallas_kernels.registry import current_target
from rtpjax.lab.stage import Lab

_PACKAGES = (
    *("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "transformers", "torch"),
    *("triton", "numpy", "sanic", "llguidance", "rtpjax"),
)
_QUERY = (
    "name,driver_version,memory.total,memory.used,clocks.sm,clocks.mem,clocks.max.sm,power.limit,"
    "ecc.mode.current,persistence_mode"
)


def run(lab: Lab) -> None:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    lab.record.note(
        "machine", python=platform.python_version(), cores=os.cpu_count(), versions=versions
    )
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lab.record.note("nvidia-smi", said=(done.stdout or done.stderr).strip())
    else:
        lab.record.note("nvidia-smi", said="not found")
    started = time.perf_counter()
    device = jax.devices()[0]
    lab.record.measured("facts.jax_start", time.perf_counter() - started, "s")
    lab.record.note(
        "device",
        platform=device.platform,
        kind=device.device_kind,
        capability=getattr(device, "compute_capability", None),
        target=str(current_target()),
        memory=(device.memory_stats() or {}).get("bytes_limit"),
        runtime=getattr(device.client, "platform_version", ""),
    )
    started = time.perf_counter()
    jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((256, 256))))
    lab.record.measured("facts.first_program", time.perf_counter() - started, "s")
