"""Silence, stalls and farewells, over real sockets; only the end of the process is replaced."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator

import pytest

from rtpjax.distributed import heartbeat
from rtpjax.distributed.channel import Guest, Host
from rtpjax.distributed.heartbeat import FollowerWatch, LeaderWatch, Limits

LIMITS = Limits(beat_s=0.05, silence_s=1.5, stall_s=3600, flush_s=0.5)


class Pair:
    """A leader and one follower."""

    def __init__(self, limits: Limits = LIMITS, *, is_serving: bool = True):
        self.host = Host("127.0.0.1")
        self.guest = Guest(self.host.invitation, 1)
        self.num_published = 0
        self.failures: list[str] = []
        self.leaves: list[bool] = []
        self.leader_ended, self.follower_ended = threading.Event(), threading.Event()
        self.leader = LeaderWatch(
            self.host.beats,
            1,
            num_published=lambda: self.num_published,
            on_failure=self.failures.append,
            on_leave=lambda: self.leaves.append(True),
            limits=limits,
            end=self.leader_ended.set,
        )
        self.follower = FollowerWatch(self.guest.beats, limits, self.follower_ended.set)
        self.leader.is_serving = self.follower.is_serving = is_serving
        self.leader.start()
        self.follower.start()

    def close(self) -> None:
        self.follower.stop()
        self.leader.stop()
        self.guest.close()
        self.host.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def test_nothing_happens_while_both_beat(pair: Pair) -> None:
    time.sleep(2 * LIMITS.silence_s)
    assert not pair.failures
    assert not (pair.leader_ended.is_set() or pair.follower_ended.is_set())


def test_a_silent_follower_ends_the_leader(pair: Pair) -> None:
    time.sleep(0.3)
    pair.follower.stop()
    started = time.monotonic()
    assert pair.leader_ended.wait(20)
    assert time.monotonic() - started > LIMITS.silence_s - LIMITS.beat_s
    assert pair.failures == ["process 1 has been silent for 2 s"]


def test_a_silent_leader_ends_the_follower(pair: Pair) -> None:
    pair.leader.stop()
    assert pair.follower_ended.wait(20)


def test_silence_counts_later_while_loading() -> None:
    pair = Pair(dataclasses.replace(LIMITS, loading_silence_s=4), is_serving=False)
    pair.follower.stop()
    time.sleep(2)
    assert not pair.failures
    assert pair.leader_ended.wait(20)
    pair.close()


def test_a_process_that_was_held_up_itself_does_not_blame_others(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.monotonic
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: real() + 3600)  # a machine asleep
    time.sleep(0.5)
    assert not pair.failures
    assert not pair.follower_ended.is_set()


def test_a_failing_follower_says_why(pair: Pair) -> None:
    pair.follower.fail("ValueError: wrong shape")
    assert pair.leader_ended.wait(LIMITS.silence_s)  # not only when it has been silent
    assert pair.failures == ["process 1 failed: ValueError: wrong shape"]
    assert pair.follower_ended.is_set()


def test_a_failing_leader_ends_the_follower(pair: Pair) -> None:
    pair.leader.fail("process 0 failed in a step")
    assert pair.follower_ended.wait(LIMITS.silence_s)
    assert pair.leader_ended.wait(LIMITS.silence_s)
    assert pair.failures == ["process 0 failed in a step"]


def test_a_follower_that_is_told_to_end_has_the_leader_drain_once(pair: Pair) -> None:
    pair.follower.is_leaving = True
    time.sleep(1)
    assert pair.leaves == [True]
    assert not pair.failures


def test_a_follower_that_beats_but_does_not_move_is_noticed() -> None:
    pair = Pair(Limits(beat_s=0.05, silence_s=20, stall_s=1, flush_s=0.1))
    time.sleep(1.5)  # idle for longer than that is no stall
    assert not pair.failures
    pair.num_published = 5
    for pair.follower.num_done in range(4):  # slow, but it moves
        time.sleep(0.5)
    assert not pair.failures
    assert pair.leader_ended.wait(10)
    assert pair.failures == ["process 1 has not finished call 4 in 1 s"]
    pair.close()
