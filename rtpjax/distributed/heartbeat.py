"""Notices within seconds that a process is gone or hangs, and ends the group then.

Collectives wait for ever, or nearly, for a process that is gone: the thread that waits cannot
notice it. So a thread on each side does: followers say every half second which call they have
finished, the leader answers; silence, or a call that is not finished for long, ends the process.
The orchestrator starts the group again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds.

    Attributes:
        beat_s: Between two heartbeats.
        silence_s: Without a word, then a process counts as gone.
        loading_silence_s: The same before it is ready: compiling keeps a machine busy.
        stall_s: That one call may take; a step of a long prompt takes some.
        flush_s: From the first failure to the end of the process, for callers to be told.
    """

    beat_s: float = 0.5
    silence_s: float = 6.0
    loading_silence_s: float = 60.0
    stall_s: float = 120.0
    flush_s: float = 3.0


class _Clock:
    """Seconds that this thread was awake: a machine that is held up hears nobody, and all live on.

    Args:
        beat_s: Most that counts from one reading to the next.
    """

    def __init__(self, beat_s: float):
        self.now = 0.0
        self._beat_s = beat_s
        self._read_at = time.monotonic()

    def read(self) -> None:
        """Moves `now` on."""
        before, self._read_at = self._read_at, time.monotonic()
        self.now += min(self._read_at - before, 2 * self._beat_s)


class _Progress:
    """What the leader knows of one follower."""

    def __init__(self):
        self.heard_at = 0.0
        self.moved_at = 0.0
        self.num_done = 0


class LeaderWatch(threading.Thread):
    """Listens to the followers' heartbeats.

    Args:
        beats: A Host's socket.
        num_followers: How many there are.
        num_published: How many calls they should have finished.
        on_failure: Told the reason, once; the process ends Limits.flush_s later.
        on_leave: Called, once, when a follower was asked to end.
        limits: When a follower counts as gone.
        end: Ends the process.

    Attributes:
        is_serving: Whether loading is over, and silence counts sooner.
    """

    def __init__(
        self,
        beats: zmq.Socket[bytes],
        num_followers: int,
        *,
        num_published: Callable[[], int],
        on_failure: Callable[[str], None],
        on_leave: Callable[[], None],
        limits: Limits,
        end: Callable[[], None],
    ):
        super().__init__(name="leader-watch", daemon=True)
        self.is_serving = False
        self._end_process = end
        self._beats = beats
        self._num_published = num_published
        self._on_failure = on_failure
        self._on_leave = on_leave
        self._limits = limits
        self._failure: str | None = None
        self._has_left = False
        self._is_stopping = threading.Event()
        self._clock = _Clock(limits.beat_s)
        self._followers = {i + 1: _Progress() for i in range(num_followers)}

    def fail(self, reason: str) -> None:
        """The group cannot go on; from any thread."""
        self._failure = self._failure or reason

    def stop(self) -> None:
        """Ends the thread; silence means nothing any more."""
        self._is_stopping.set()
        self.join()

    def run(self) -> None:
        """Listens until stop, or until the process ends."""
        while not self._is_stopping.is_set():
            if self._beats.poll(int(1000 * self._limits.beat_s / 2)):
                self._listen()
            # Beats that came while this process was held up are read by now.
            self._clock.read()
            self._failure = self._failure or self._missing()
            if self._failure is not None:
                self._end(self._failure)
                return

    def _listen(self) -> None:
        while self._beats.poll(0):
            name, data = self._beats.recv_multipart()
            beat = json.loads(data)
            self._note(int(name), beat)
            self._beats.send_multipart([name, _message(failure=self._failure)])

    def _note(self, process_id: int, beat: dict[str, Any]) -> None:
        follower, now = self._followers[process_id], self._clock.now
        follower.heard_at = now
        if beat["num_done"] != follower.num_done or beat["num_done"] >= self._num_published():
            follower.moved_at = now
        follower.num_done = beat["num_done"]
        if beat["failure"]:
            self.fail(f"process {process_id} failed: {beat['failure']}")
        if beat["is_leaving"] and not self._has_left:
            self._has_left = True
            logger.info("Process %d was asked to end; the group drains", process_id)
            self._on_leave()

    def _missing(self) -> str | None:
        now, limits = self._clock.now, self._limits
        longest_s = limits.silence_s if self.is_serving else limits.loading_silence_s
        for process_id, follower in self._followers.items():
            silent_s, still_s = now - follower.heard_at, now - follower.moved_at
            if silent_s > longest_s:
                return f"process {process_id} has been silent for {silent_s:.0f} s"
            if still_s > limits.stall_s:
                return (
                    f"process {process_id} has not finished call {follower.num_done + 1} in "
                    f"{still_s:.0f} s"
                )
        return None

    def _end(self, reason: str) -> None:
        logger.critical("The group of hosts has failed, and this process ends: %s", reason)
        self._on_failure(reason)
        deadline = time.monotonic() + self._limits.flush_s
        while time.monotonic() < deadline:  # the followers are told why
            if self._beats.poll(100):
                self._listen()
        self._end_process()


class FollowerWatch(threading.Thread):
    """Sends heartbeats to the leader and listens to its answers.

    Args:
        beats: A Guest's socket.
        limits: When the leader counts as gone.
        end: Ends the process.

    Attributes:
        num_done: Calls that this process has finished; whoever runs them sets it.
        is_leaving: Whether this process was asked to end; likewise.
        is_serving: Whether loading is over, and silence counts sooner; likewise.
    """

    def __init__(self, beats: zmq.Socket[bytes], limits: Limits, end: Callable[[], None]):
        super().__init__(name="follower-watch", daemon=True)
        self._end_process = end
        self.num_done = 0
        self.is_leaving = False
        self.is_serving = False
        self._beats = beats
        self._limits = limits
        self._is_stopping = threading.Event()
        self._failure: str | None = None

    def fail(self, reason: str) -> None:
        """Tells the leader, and ends the process."""
        logger.critical("This process ends: %s", reason)
        self._failure = reason
        self._is_stopping.set()
        self.join()  # its last beat is sent then
        self._beats.context.destroy(linger=1000)
        self._end_process()

    def stop(self) -> None:
        """Ends the thread; silence means nothing any more."""
        self._is_stopping.set()
        self.join()

    def run(self) -> None:
        """Beats until stop, or until the process ends."""
        clock, limits, heard_at = _Clock(self._limits.beat_s), self._limits, 0.0
        while not self._is_stopping.wait(self._limits.beat_s):
            self._beat()
            while self._beats.poll(0):
                answer = json.loads(self._beats.recv())
                heard_at = clock.now
                if answer["failure"]:
                    logger.critical("The leader ends the group: %s", answer["failure"])
                    self._end_process()
                    return
            clock.read()
            silent_s = clock.now - heard_at
            if silent_s > (limits.silence_s if self.is_serving else limits.loading_silence_s):
                logger.critical("The leader has been silent for %.0f s; it is gone", silent_s)
                self._end_process()
                return
        self._beat()

    def _beat(self) -> None:
        self._beats.send(
            _message(num_done=self.num_done, is_leaving=self.is_leaving, failure=self._failure)
        )


def end_process() -> None:
    """Ends it now, non-zero: other threads may wait in a collective that never ends."""
    logging.shutdown()
    os._exit(1)


def _message(**fields: Any) -> bytes:
    return json.dumps(fields).encode()
