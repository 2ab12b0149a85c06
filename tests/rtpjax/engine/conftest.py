from __future__ import annotations

import pytest

from rtpjax.engine.runner import Runner
from tests.rtpjax.engine import tiny


@pytest.fixture(scope="session")
def compiled() -> Runner:
    return tiny.runner()


@pytest.fixture
def runner(compiled):
    """The shared runner, as it was after compilation; no test may make it compile again."""
    compiled.reset()
    yield compiled
    assert compiled.num_recompiles == 0
