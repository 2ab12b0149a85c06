"""Under CI=true a test that is skipped for a reason that is not listed here fails the run.

A skip is silent: without the embedded model nearly all end-to-end tests would go, and the run would
still be green.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

import pytest


class Allowed(NamedTuple):
    """A skip that CI accepts.

    Attributes:
        reason: A regular expression that matches the whole of pytest's reason.
        why: Why nothing is lost.
    """

    reason: str
    why: str


ALLOWED = (
    Allowed(
        r"the format has no such names",
        "a format of calls with fixed names; the others have them",
    ),
    Allowed(r"the GPU compiler is not installed", "make gpu-test runs these tests where it is"),
    Allowed(
        r"\[Errno \d+\] ptrace of thread .*",
        "a container may forbid ptrace, with which a benchmark counts instructions",
    ),
)


def is_ci() -> bool:
    """Whether this run decides over a commit."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def refused(skipped: Iterable[pytest.TestReport | pytest.CollectReport]) -> list[str]:
    """Lines that name the skipped tests whose reason is not allowed."""
    found = []
    for report in skipped:
        if getattr(report, "wasxfail", None) is not None:
            continue
        reason = _reason_of(report)
        if not any(re.fullmatch(allowed.reason, reason, re.DOTALL) for allowed in ALLOWED):
            found.append(f"{report.nodeid}: {reason}")
    return found


def _reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


class Gate:
    """A plugin of the process that collects the reports of all workers; it ends the run with 1."""

    def __init__(self) -> None:
        self.skipped: list[pytest.TestReport | pytest.CollectReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skipped.append(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if refused(self.skipped) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        lines = refused(self.skipped)
        if lines:
            terminalreporter.section("skips that are not in tests/skips.py", red=True)
            for line in lines:
                terminalreporter.write_line(f"FAILED {line}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Sets the gate in the one process that hears of all tests."""
    if is_ci() and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Gate(), "skips")
