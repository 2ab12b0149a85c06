"""After a failed step: who may run again, and who is to blame.

    probe ──► suspect ──► suspect ──► ... ──► everyone else

A step that fails does not tell whose fault it was. So all requests start again from their known
tokens, but not together. First comes a probe, a request of the engine's own: if that fails, it is
the engine that is broken. Then those of the failed step come one by one, beside the ones that have
been cleared: a suspect is cleared once it has got past the token at which the step failed. Whoever
is on trial when a step fails again is to blame, and only that request ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from rtpjax.engine.sequence import Sequence

MAX_FAILURES = 3  # steps that may fail with a request in them although it was cleared each time


class Trial:
    """Holds the sequences that may not be scheduled yet."""

    def __init__(self):
        self._tried: Sequence | None = None
        self._suspects: deque[Sequence] = deque()
        self._cleared: set[Sequence] = set()
        self._held: list[Sequence] = []

    @property
    def is_on(self) -> bool:
        """Whether somebody is on trial."""
        return self._tried is not None or bool(self._suspects)

    @property
    def num_held(self) -> int:
        """How many wait for the trial; safe to ask from another thread."""
        return len(self._suspects) + len(self._held)

    @property
    def held(self) -> list[Sequence]:
        """The sequences that wait for the trial."""
        return [*self._suspects, *self._held]

    def hold(self, sequence: Sequence) -> None:
        """Has a new sequence wait until the trial is over."""
        self._held.append(sequence)

    def send_probe(self, probe: Sequence) -> None:
        """The next one on trial."""
        probe.goal = 1
        self._suspects.appendleft(probe)

    def discard(self, sequence: Sequence) -> bool:
        """Takes a sequence out that has ended; False if it was not held."""
        if sequence in self._suspects:
            self._suspects.remove(sequence)
        elif sequence in self._held:
            self._held.remove(sequence)
        else:
            return False
        return True

    def admit(self) -> list[Sequence]:
        """Who may be scheduled from now on, besides those that may already."""
        tried = self._tried
        if tried is None and not self._suspects:
            return []
        if tried is not None:
            if not tried.is_finished and tried.num_output_tokens < tried.goal:
                return []
            self._cleared.add(tried)
        self._tried = self._suspects.popleft() if self._suspects else None
        if self._tried is None:
            admitted, self._held = self._held, []
            self._cleared.clear()
            return admitted
        admitted = [s for s in self._held if s in self._cleared]
        self._held = [s for s in self._held if s not in self._cleared]
        return [*admitted, self._tried]

    def fail(self, in_step: Collection[Sequence], live: Iterable[Sequence]) -> list[Sequence]:
        """A step has failed: holds all live sequences.

        Args:
            in_step: Those that took part in it; none where that is not known.
            live: All, these included, before they start again.

        Returns:
            Who is to blame, and to be ended.
        """
        live = list(live)
        tried, self._tried = self._tried, None
        if tried is not None and not tried.is_finished and (not in_step or tried in in_step):
            blamed, suspects = [tried], list(self._suspects)
        else:
            accused = list(in_step or live)
            for sequence in accused:
                sequence.num_failures += 1
                sequence.goal = max(sequence.num_sampled, sequence.num_output_tokens + 1)
            blamed = [s for s in accused if s.num_failures > MAX_FAILURES]
            suspects = list(dict.fromkeys([*accused, *([tried] if tried else ()), *self._suspects]))
        self._suspects = deque(s for s in suspects if s not in blamed and not s.is_finished)
        waiting = set(self._suspects)
        self._cleared -= waiting
        self._held = [s for s in live if s not in waiting]
        return blamed
