"""What a stage measures, as lines of JSON that are on the disk at once.

Kinds of lines, by the key that they have:

    value    a figure: {"stage": "forward", "at": 81.5, "id": "forward.64", "value": 9.8, ...}
    error    something that failed, by its id; what stands beside it goes on
    note     a fact
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAX_ERROR = 600  # characters; the stage's log has the whole of it


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Appends a stage's lines to a file.

    Attributes:
        path: The file, which all stages share.
        stage: Whose lines they are.
        began: When the lab began, as time.time() has it.
    """

    path: Path
    stage: str
    began: float

    def measured(self, id: str, value: float, unit: str, **more: Any) -> None:
        """A figure.

        Args:
            id: Names it, also to predictions.toml.
            value: In `unit`.
            unit: ms, us, GB/s, TFLOP/s, tok/s, x.
            **more: `limit`: the best that the data sheet allows, in the same unit; and what else
                belongs to it. What is None is left out.
        """
        known = {key: item for key, item in more.items() if item is not None}
        self._append({"id": id, "value": float(f"{value:.6g}"), "unit": unit, **known})

    def note(self, what: str, **more: Any) -> None:
        """A fact."""
        self._append({"note": what, **more})

    def failed(self, id: str, error: str) -> None:
        """Something that did not work."""
        self._append({"id": id, "error": error[:_MAX_ERROR]})

    @contextlib.contextmanager
    def attempt(self, id: str) -> Iterator[None]:
        """What fails inside is recorded, and the stage goes on with what comes after."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever it is: a visit is too short for it
            self.failed(id, explain(error))

    def _append(self, fields: dict[str, Any]) -> None:
        at = round(time.time() - self.began, 1)
        line = json.dumps({"stage": self.stage, "at": at, **fields}, default=str)
        with self.path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(line, flush=True)


def explain(error: BaseException) -> str:
    """One line of an error; of those that people meet, what to do."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed: pip install it, or take a lab kit along"
    if "RESOURCE_EXHAUSTED" in said or "out of memory" in said.lower():
        return f"the GPU's memory is full: take a smaller --model, or free it. {said}"
    return said


def read(path: Path) -> list[dict[str, Any]]:
    """All lines of a file of results; one that a killed stage left unfinished is passed over."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found
