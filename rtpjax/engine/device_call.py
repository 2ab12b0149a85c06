"""A change of what the devices hold, in plain values."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class DeviceCall(NamedTuple):
    """What a runner is to do with its devices: all that another process needs to do the same.

    Attributes:
        name: Of one of Runner's device calls.
        number: The index of a bucket or of a program that chooses tokens, or a place in SlotState
            (dp group * max_num_seqs + slot); by name.
        arrays: Inputs, numpy.
    """

    name: str
    number: int = 0
    arrays: tuple[np.ndarray, ...] = ()
