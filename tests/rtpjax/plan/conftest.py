from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module", autouse=True)
def no_compile_cache() -> Iterator[None]:
    """Programs for GPUs that are not there can be kept, but not be loaded again."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # or what was found before holds
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
