"""What a stage gets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

from rtpjax.lab.record import Recorder

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Lab:
    """What a stage gets.

    Attributes:
        record: Where its results go.
        scratch: Folder for a stage's own files; it is packed into one at the end.
        cache: Folder of compiled programs, which the stages share.
        model: The config.json of the model, which gets random weights.
        gpu: Data sheet to measure against, a name or a file; None goes by the device.
        is_small: In miniature, on the CPU: the figures mean nothing.
    """

    record: Recorder
    scratch: Path
    cache: Path
    model: Path
    gpu: str | None
    is_small: bool

    def pick(self, full: T, small: T) -> T:
        """A size for the GPU, or for the miniature."""
        return small if self.is_small else full
