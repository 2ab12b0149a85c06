"""What processes tell each other at the start; tests/e2e/test_hosts.py does it with real ones."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rtpjax.distributed import runtime
from rtpjax.errors import ConfigError


def check(monkeypatch: pytest.MonkeyPatch, *descriptions: dict[str, object]) -> None:
    """What process 0 finds where each process has one of the descriptions."""
    told: list[np.ndarray] = []

    def gathered(own: np.ndarray) -> np.ndarray:
        told.append(own)
        return np.stack(told)

    monkeypatch.setattr(jax, "process_count", lambda: len(descriptions))
    monkeypatch.setattr(runtime.multihost_utils, "process_allgather", gathered)
    for description in descriptions:
        runtime.check_same(description)


def test_processes_that_were_started_alike_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, {"max_model_len": 4096}, {"max_model_len": 4096})


def test_processes_that_were_started_differently_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    same = {"max_model_len": 4096, "dtype": "float32"}
    message = (
        r"processes 0 and 2 were started differently \(max_model_len: 4096 and 512\)\. Start all"
    )
    with pytest.raises(ConfigError, match=message):
        check(monkeypatch, same, same, same | {"max_model_len": 512})
