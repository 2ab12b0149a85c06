"""What a check found: lines of a table or of JSON, and the verdict."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

Status = Literal["ok", "FAILED", "refused", "skipped", "measured", "not run"]


@dataclasses.dataclass(frozen=True)
class Result:
    """One line.

    Attributes:
        op: What was checked: an op, `generation`, `decode step`.
        case: With which shape.
        status: refused: the implementation says so before it is lowered, and another is used.
            skipped: it cannot be checked here. measured: a figure, which nothing judges. not run:
            its turn did not come, because of what came before.
        detail: Figures, or why.
        implementation: Of the op.
        error: Largest error as a part of what is tolerated.
        compile_s: Seconds that its programs took to trace and compile, beside others.
        run_us: Microseconds of a call, dispatched again and again with the same arrays: what fits
            the GPU's cache is read from there, and no call is faster than its dispatch.
    """

    op: str
    case: str
    status: Status
    detail: str
    implementation: str = ""
    error: float | None = None
    compile_s: float | None = None
    run_us: float | None = None

    @property
    def what(self) -> str:
        """The op, and its implementation if it has several."""
        return f"{self.op}/{self.implementation}" if self.implementation else self.op

    def to_json(self) -> str:
        """A line: an object with the fields that have a value; 1e30 is an error without bounds."""
        fields = dataclasses.asdict(self)
        if self.error is not None:
            fields["error"] = min(self.error, 1e30)  # JSON has no infinity
        return json.dumps({name: value for name, value in fields.items() if value is not None})


_MOST_WORDS = 300


def brief(error: BaseException | str) -> str:
    """An error in one line: its beginning, and its end where it is long."""
    words = " ".join(str(error).split())
    if len(words) <= _MOST_WORDS:
        return words
    return f"{words[: _MOST_WORDS // 2]} ... {words[-_MOST_WORDS // 2 :]}"


def judged(result: Callable[..., Result], error: float, **figures: Any) -> Result:
    """The result of a comparison: `result` with a status, a detail and the figures."""
    detail = f"largest error {error:.3f} of what is tolerated"
    return result("ok" if error <= 1 else "FAILED", detail, error=error, **figures)


def is_ok(results: Sequence[Result]) -> bool:
    """Whether something was compared, nothing failed and nothing was left out."""
    statuses = {result.status for result in results}
    return "ok" in statuses and not statuses & {"FAILED", "not run"}


def line(result: Result) -> str:
    """A line of the table."""
    run = "" if result.run_us is None else f"{result.run_us:.0f} us; "
    return f"{result.what:28.28} {result.case:36.36} {result.status:8} {run}{result.detail}"


HEADER = f"{'what':28} {'case':36} {'status':8} detail"
