"""JAX on several virtual CPU devices, strict about dtypes and ranks; warnings are errors."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any

import jax
import pytest

# Tests import each other's data (tests.golden) and, before installation, the packages.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from tests import compile_cache, examples, skips, worker_scopes

compile_cache.enable()
examples.register_profiles()
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

OURS = "rtpjax|pallas_kernels|server|checkpoints_conv|bench|tests"


def pytest_configure(config: pytest.Config) -> None:
    """Makes warnings errors, but for deprecations between other people's packages."""
    config.addinivalue_line("filterwarnings", "error")
    config.addinivalue_line("filterwarnings", f"ignore::DeprecationWarning:(?!({OURS})\\b)")
    # Warned of by compiled extensions; where they cannot raise, an error would end Python.
    config.addinivalue_line("filterwarnings", "ignore:builtin type:DeprecationWarning")
    skips.pytest_configure(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker ends long after the other."""
    items.sort(key=lambda item: not item.nodeid.startswith(worker_scopes.TOGETHER))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile` the files of one server go to one worker."""
    is_ours = config.getoption("dist") == "loadfile"
    return worker_scopes.SharedServerScheduling(config, log) if is_ours else None
