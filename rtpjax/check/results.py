"""What a check found, and its table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

Status = Literal["ok", "FAILED", "refused", "skipped", "measured"]


@dataclasses.dataclass(frozen=True)
class Result:
    """One line.

    Attributes:
        what: What was checked: `op/implementation`, `generation`, `decode step`.
        case: With which shape.
        status: refused: the implementation says so before it is lowered, and another is used.
            skipped: it cannot be checked here. measured: a figure, which nothing judges.
        detail: Figures, or why.
        error: Largest error as a part of what is tolerated.
    """

    what: str
    case: str
    status: Status
    detail: str
    error: float | None = None


def judged(what: str, case: str, error: float, detail: str = "") -> Result:
    """The result of a comparison."""
    detail = detail or f"largest error {error:.3f} of what is tolerated"
    return Result(what, case, "ok" if error <= 1 else "FAILED", detail, error)


def is_ok(results: Sequence[Result]) -> bool:
    """Whether something was compared, and nothing failed."""
    statuses = {result.status for result in results}
    return "ok" in statuses and "FAILED" not in statuses


def line(result: Result) -> str:
    """A line of the table."""
    return f"{result.what:28.28} {result.case:36.36} {result.status:8} {result.detail}"


HEADER = f"{'what':28} {'case':36} {'status':8} detail"
