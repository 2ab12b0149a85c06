"""JAX on several virtual CPU devices, strict about dtypes and ranks; warnings are errors."""

from __future__ import annotations

import os
import pathlib
import sys

import jax
import pytest

# Tests import each other's data (tests.golden) and, before installation, the packages.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

OURS = "rtpjax|pallas_kernels|server|checkpoints_conv|bench|tests"


def pytest_configure(config: pytest.Config) -> None:
    """Makes warnings errors, but for deprecations between other people's packages."""
    config.addinivalue_line("filterwarnings", "error")
    config.addinivalue_line("filterwarnings", f"ignore::DeprecationWarning:(?!({OURS})\\b)")
    # Warned of while JAX's and torch's compiled extensions are imported.
    config.addinivalue_line("filterwarnings", "ignore:builtin type Swig:DeprecationWarning")
