"""A mesh of GPUs that are not there: the real compiler compiles for it, nothing can run on it.

It needs a CUDA plugin of jaxlib's version (jax-cuda12-plugin and jax-cuda12-pjrt, or those of
CUDA 13), and no driver.
"""

from __future__ import annotations

import importlib.metadata

import jaxlib.version
from jax.experimental import topologies
from jax.sharding import Mesh

from rtpjax.gpus import Gpu
from rtpjax.models import ModelConfig
from rtpjax.sharding import mesh_shape

# Generations of CUDA, the newest first, with the version that a GPU is described with: of its
# libraries, and of its driver, without which XLA would put no conditional into CUDA graphs.
_CUDA_VERSIONS = {13: "13.0.0", 12: "12.8.0"}
# The same for every NVIDIA GPU since sm_80.
_COMMON = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
}


def compiler_problem() -> str | None:
    """Why there is no GPU compiler, and what to do; None if there is one."""
    wanted, found = jaxlib.version.__version__, _installed()
    if not found:
        return f"The GPU compiler is not installed: {_how_to_install()}"
    _, versions = found
    if set(versions.values()) != {wanted}:
        named = " and ".join(f"{name} {version}" for name, version in versions.items())
        return f"The GPU compiler ({named}) is not that of jaxlib {wanted}: {_how_to_install()}"
    return None


def compiler_is_installed() -> bool:
    """Whether there is a compiler that fits jaxlib."""
    return compiler_problem() is None


def compiler_packages() -> tuple[str, ...]:
    """The packages that the compiler is in; none if it is not installed."""
    found = _installed()
    return tuple(found[1]) if found else ()


def assembler_package() -> str:
    """The package with a ptxas that reads what the compiler writes."""
    return "nvidia-cuda-nvcc-cu12" if cuda_generation() == 12 else "nvidia-cuda-nvcc"


def cuda_generation() -> int:
    """12 or 13: the compiler's; the newest if there is none."""
    found = _installed()
    return found[0] if found else max(_CUDA_VERSIONS)


def _installed() -> tuple[int, dict[str, str]] | None:
    """The newest CUDA whose packages are all there, and their versions."""
    for cuda in _CUDA_VERSIONS:
        names = f"jax-cuda{cuda}-plugin", f"jax-cuda{cuda}-pjrt"
        try:
            return cuda, {name: importlib.metadata.version(name) for name in names}
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _how_to_install() -> str:
    """The command that brings the GPU compiler; on a machine without a GPU it wants a venv."""
    version, cuda = jaxlib.version.__version__, cuda_generation()
    return (
        f"pip install --no-deps jax-cuda{cuda}-plugin=={version} jax-cuda{cuda}-pjrt=={version} "
        f"{assembler_package()}, or after `make gpu-check` run "
        ".venv/gpu-check/bin/python -m rtpjax.cli plan ..."
    )


def target_config(gpu: Gpu) -> str:
    """The GPU as XLA's GpuTargetConfigProto in text form."""
    major, minor = gpu.compute_capability
    version = _CUDA_VERSIONS[cuda_generation()]
    cuda, minor_version, _ = version.split(".")
    numbers = {
        **_COMMON,
        **gpu.device,
        "memory_bandwidth": gpu.memory_bandwidth,
        "device_memory_size": gpu.memory_bytes,
    }
    extension = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    return "\n".join(
        [
            "gpu_device_info {",
            f'  driver_version: "{version}"',
            *(f"  {name}: {value}" for name, value in numbers.items()),
            f"  cuda_compute_capability {{ major: {major} minor: {minor}"
            f" feature_extension: {extension} }}",
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 10 }",
            f"runtime_version {{ major: {cuda} minor: {minor_version} }}",
            f'device_description_str: "{gpu.full_name}"',
        ]
    )


def make_mesh(gpu: Gpu, tp_size: int, model: ModelConfig | None = None) -> Mesh:
    """The mesh of a model (rtpjax.sharding.make_mesh) over such GPUs in one machine."""
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(gpu), topology=f"1x1x{tp_size}"
    )
    shape = mesh_shape(tp_size, model=model)
    return topologies.make_mesh(topology, tuple(shape.values()), tuple(shape))
