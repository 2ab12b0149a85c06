"""GPUs as data: a TOML file here, or one that the user names, describes a GPU.

The compiler takes the description in place of a device (rtpjax.plan.topology); limits come from the
bandwidth and the rates.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pallas_kernels.registry import Target
from rtpjax.errors import ConfigError

_FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU's data sheet.

    Attributes:
        name: The file's name, what `--gpu` takes.
        full_name: As the driver calls it.
        memory_bytes: What the driver reports.
        memory_bandwidth: Bytes a second.
        compute_capability: Major and minor.
        peak_flops: Dense operations a second by dtype name.
        device: Further numbers of the compiler's device description, by its names.
    """

    name: str
    full_name: str
    memory_bytes: int
    memory_bandwidth: int
    compute_capability: tuple[int, int]
    peak_flops: Mapping[str, float]
    device: Mapping[str, int | float]

    @property
    def target(self) -> Target:
        """What programs for it are traced for."""
        major, minor = self.compute_capability
        return Target("gpu", 10 * major + minor)

    @property
    def ptx_target(self) -> str:
        """The architecture that ptxas assembles for; from sm90 on with its own instructions."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}{'a' if major >= 9 else ''}"

    def peak(self, dtype: str) -> float:
        """Dense operations a second in a dtype; formats without units of their own run as bf16."""
        return self.peak_flops.get(dtype, self.peak_flops["bfloat16"])


def names() -> list[str]:
    """The GPUs that are described here."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load(name: str) -> Gpu:
    """A GPU by name, or from a `.toml` file of the user's.

    Raises:
        ConfigError: There is no such GPU, or the file lacks something.
    """
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name.lower()}.toml"
    if not path.is_file():
        raise ConfigError(
            f"GPU {name!r} is not known; known are {', '.join(names())}. Another one can be "
            f"described in a file like {_FOLDER / 'h100.toml'} and named by its path."
        )
    try:
        return _parse(path.stem, tomllib.loads(path.read_text()))
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a description of a GPU ({type(error).__name__}: {error}). "
            f"{_FOLDER / 'h100.toml'} is one."
        ) from error


def of_device(kind: str) -> Gpu | None:
    """The GPU that the driver calls so; None if nobody has described it."""
    known = (load(name) for name in names())
    return next((gpu for gpu in known if gpu.full_name == kind), None)


_DEVICE_FIELDS = (
    "core_count",
    "fpus_per_core",
    "threads_per_core_limit",
    "shared_memory_per_core",
    "shared_memory_per_block_optin",
    "l2_cache_size",
    "clock_rate_ghz",
)


def _parse(name: str, table: Mapping[str, Any]) -> Gpu:
    major, minor = (int(part) for part in table["compute_capability"].split("."))
    gpu = Gpu(
        name=name,
        full_name=table["full_name"],
        memory_bytes=int(table["memory_bytes"]),
        memory_bandwidth=int(table["memory_bandwidth"]),
        compute_capability=(major, minor),
        peak_flops={dtype: float(rate) for dtype, rate in table["peak_flops"].items()},
        device={field: table["device"][field] for field in _DEVICE_FIELDS},
    )
    gpu.peak_flops["bfloat16"]
    if min(gpu.memory_bytes, gpu.memory_bandwidth, *gpu.peak_flops.values()) <= 0:
        raise ValueError("memory, bandwidth and rates must be positive")
    return gpu
