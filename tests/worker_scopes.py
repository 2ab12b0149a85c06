"""Which tests of a run with workers stay together."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

TOGETHER = "tests/e2e/"


class SharedServerScheduling(LoadFileScheduling):
    """Whole files, so that what a file compiles or starts is made once.

    The files of tests/e2e go to one worker: they share a server process and a model's programs.
    """

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER if nodeid.startswith(TOGETHER) else super()._split_scope(nodeid)
