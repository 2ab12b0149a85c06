"""The side of all other processes: the leader's device calls, made again in their order."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

import jax

from rtpjax.distributed import runtime
from rtpjax.distributed.channel import Guest, Invitation, receive
from rtpjax.distributed.heartbeat import FollowerWatch, Limits, end_process
from rtpjax.distributed.hosts import Hosts
from rtpjax.engine.runner import Runner

logger = logging.getLogger(__name__)

_IDLE_MS = 100


def follow(
    hosts: Hosts, timeout_s: int, load: Callable[[], Runner], limits: Limits | None = None
) -> None:
    """Takes part until the leader stops; ends the process, non-zero, when that fails.

    Args:
        hosts: Who takes part.
        timeout_s: How long to wait for the leader.
        load: Makes the runner and compiles its programs, as the leader does.
        limits: When the leader counts as gone.

    Raises:
        ConfigError: The leader cannot be met.
    """
    logger.info("This is %s, a follower: it has no HTTP; waiting for the leader", hosts)
    runtime.join(hosts, timeout_s)
    guest = Guest(Invitation.decode(runtime.broadcast(b"")), hosts.process_id)
    watch = FollowerWatch(guest.beats, limits or Limits(), end_process)
    watch.start()
    with _Failing(watch):
        runner = load()
        watch.is_serving = True
        _leave_on_signals(watch)
        logger.info("Ready: this follower makes the leader's steps on %s", jax.local_devices())
        _replay(guest, runner, watch)
    watch.stop()
    guest.close()
    runtime.leave()
    logger.info("The leader has stopped; so does this follower")


class _Failing:
    """Whatever is raised inside is told to the leader, and ends the process."""

    def __init__(self, watch: FollowerWatch):
        self._watch = watch

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object):
        if error is not None:
            logger.critical("This follower failed", exc_info=error)
            self._watch.fail(f"{type(error).__name__}: {error}")


def _replay(guest: Guest, runner: Runner, watch: FollowerWatch) -> None:
    """Makes calls as they come; like the leader it waits for a step once the next is under way."""
    num_made, pending = 0, (0, None)  # of pending: how many calls are finished with it
    for call in receive(guest.steps, _IDLE_MS):
        if call is None:
            jax.block_until_ready(pending[1])
            watch.num_done, pending = num_made, (num_made, None)
            continue
        made = runner.execute(call)
        num_made += 1
        if made is not None:
            jax.block_until_ready(pending[1])
            watch.num_done, pending = pending[0], (num_made, made)


def _leave_on_signals(watch: FollowerWatch) -> None:
    """SIGTERM and SIGINT: the leader is told, drains, and stops this process too."""

    def on_signal(number: int, _: object) -> None:
        logger.info("Told to end (%s); the leader drains first", signal.Signals(number).name)
        watch.is_leaving = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
