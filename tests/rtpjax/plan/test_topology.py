"""Which compiler is taken, and what is said where there is none."""

from __future__ import annotations

import importlib.metadata

import jaxlib.version
import pytest

from rtpjax import gpus
from rtpjax.plan import check, topology

JAXLIB = jaxlib.version.__version__


def installed(monkeypatch, **versions):
    """As if just these packages were there."""

    def version(name):
        key = name.replace("-", "_")
        if key not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[key]

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_a_missing_compiler_is_said_with_what_to_install(monkeypatch):
    installed(monkeypatch, jax_cuda12_plugin=JAXLIB)  # without the other half
    assert not topology.compiler_is_installed() and topology.compiler_packages() == ()
    problem = topology.compiler_problem()
    assert problem is not None
    assert problem.startswith("The GPU compiler is not installed: pip install --no-deps ")
    assert f" jax-cuda13-plugin=={JAXLIB} jax-cuda13-pjrt=={JAXLIB} nvidia-cuda-nvcc," in problem


def test_a_compiler_of_another_version_is_none(monkeypatch):
    installed(monkeypatch, jax_cuda12_plugin="0.9.1", jax_cuda12_pjrt=JAXLIB)
    problem = topology.compiler_problem()
    assert problem is not None and not topology.compiler_is_installed()
    assert f"(jax-cuda12-plugin 0.9.1 and jax-cuda12-pjrt {JAXLIB})" in problem
    assert f"is not that of jaxlib {JAXLIB}: pip install --no-deps jax-cuda12-plugin==" in problem
    assert "nvidia-cuda-nvcc-cu12" in problem


@pytest.mark.parametrize("cuda", [12, 13])
def test_either_generation_of_cuda_serves(monkeypatch, cuda):
    installed(monkeypatch, **{f"jax_cuda{cuda}_{part}": JAXLIB for part in ("plugin", "pjrt")})
    assert topology.compiler_problem() is None
    assert topology.compiler_packages() == (f"jax-cuda{cuda}-plugin", f"jax-cuda{cuda}-pjrt")
    described = topology.target_config(gpus.load("h100"))
    assert f"runtime_version {{ major: {cuda} minor: {8 if cuda == 12 else 0} }}" in described
    # Or XLA takes the driver for one that has no conditionals in graphs.
    assert f'driver_version: "{cuda}.' in described.split("dnn_version")[0]


def test_ptxas_is_that_of_the_compilers_generation(monkeypatch):
    asked = []

    def files(name):
        asked.append(name)
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)
    monkeypatch.setattr(check.shutil, "which", lambda name: f"/usr/bin/{name}")
    for cuda in (12, 13):
        installed(monkeypatch, **{f"jax_cuda{cuda}_{part}": JAXLIB for part in ("plugin", "pjrt")})
        assert check.find_ptxas() == "/usr/bin/ptxas"
    assert asked == ["nvidia-cuda-nvcc-cu12", "nvidia-cuda-nvcc"]
