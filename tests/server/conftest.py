"""One server with a scripted engine for all tests that change nothing in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.live_server import LiveServer
from tests.server.scripted_engine import ScriptedEngine


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    with LiveServer(ScriptedEngine()) as running:
        yield running


@pytest.fixture
def engine() -> ScriptedEngine:
    """An engine of one's own, for tests that make it misbehave."""
    return ScriptedEngine()
