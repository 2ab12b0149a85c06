"""One side of the offline comparison, alive in a process of its own.

Two runtimes in one process would fight over the cores with their thread pools. So each side is a
child that sleeps in a read while the other is measured. Parent and child exchange JSON lines over
the child's standard input and output.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

Prompts = list[list[int]]


@dataclass(frozen=True, slots=True)
class Generated:
    """One timed batch.

    Attributes:
        elapsed_s: Wall time, from token ids to token ids.
        num_output_tokens: Tokens generated over all prompts.
        host_share: Part of the loop's time that was not spent waiting for the device, if the side
            knows it. Host work that overlaps with a running step is in it.
        note: How it ran, such as the dtype.
    """

    elapsed_s: float
    num_output_tokens: int
    host_share: float | None = None
    note: str = ""


class Side(Protocol):
    """What generates greedily and at fixed lengths, in the child."""

    def generate(self, prompts: Prompts, output_len: int) -> list[list[int]]: ...

    def describe(self) -> tuple[float | None, str]:
        """Returns host_share and note of the last batch."""
        ...


class SideError(Exception):
    """A child ended or answered with an error; its own message is on standard error."""


class SideProcess:
    """The parent's end of a child."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None):
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def generate(self, prompts: Prompts, output_len: int) -> Generated:
        """Returns once the child has generated; every prompt gets exactly `output_len` tokens."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            request = json.dumps({"prompts": prompts, "output_len": output_len})
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise SideError(f"the {self.name} process has ended") from error
        answer = self._process.stdout.readline()
        if not answer:
            raise SideError(f"the {self.name} process has ended")
        generated = Generated(**json.loads(answer))
        if generated.num_output_tokens != len(prompts) * output_len:
            raise SideError(
                f"{self.name} generated {generated.num_output_tokens} tokens, expected"
                f" {len(prompts) * output_len}: the sides would not do the same work"
            )
        return generated

    def close(self) -> None:
        """Ends the child: it leaves when its input ends."""
        assert self._process.stdin is not None and self._process.stdout is not None
        # A child that has ended leaves a request unsent, which closing would send.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def serve_side(make_side: Callable[[], Side]) -> None:
    """The child's loop. Anything else that is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side = make_side()
    for line in sys.stdin:
        request = json.loads(line)
        start_s = time.perf_counter()
        outputs = side.generate(request["prompts"], request["output_len"])
        elapsed_s = time.perf_counter() - start_s
        host_share, note = side.describe()
        generated = Generated(elapsed_s, sum(map(len, outputs)), host_share, note)
        answers.write(json.dumps(asdict(generated)) + "\n")
        answers.flush()
