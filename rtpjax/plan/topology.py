"""A mesh of GPUs that are not there: the real compiler compiles for it, nothing can run on it.

It needs the CUDA plugin of jaxlib's version (jax-cuda12-plugin, jax-cuda12-pjrt), and no driver.
"""

from __future__ import annotations

import importlib.util

import jaxlib.version
from jax.experimental import topologies
from jax.sharding import Mesh

from rtpjax.gpus import Gpu
from rtpjax.models import ModelConfig
from rtpjax.sharding import mesh_shape

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


def compiler_is_installed() -> bool:
    """Whether the CUDA plugin is there."""
    return all(
        importlib.util.find_spec(name) is not None for name in ("jax_cuda12_plugin", "jax_plugins")
    )


def how_to_install() -> str:
    """The command that brings the GPU compiler; on a machine without a GPU it wants a venv."""
    version = jaxlib.version.__version__
    return (
        f"pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}"
        ", or after `make gpu-check` run .venv/gpu-check/bin/python -m rtpjax.cli plan ..."
    )


def target_config(gpu: Gpu) -> str:
    """The GPU as XLA's GpuTargetConfigProto in text form."""
    major, minor = gpu.compute_capability
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
            *(f"  {name}: {value}" for name, value in numbers.items()),
            f"  cuda_compute_capability {{ major: {major} minor: {minor}"
            f" feature_extension: {extension} }}",
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 10 }",
            "runtime_version { major: 12 minor: 8 }",
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
