"""Process 0's side: publishes what its runner does, and ends when the group cannot go on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rtpjax.distributed import runtime
from rtpjax.distributed.channel import Host, Publisher, address_of
from rtpjax.distributed.heartbeat import LeaderWatch, Limits, end_process
from rtpjax.distributed.hosts import Hosts
from rtpjax.engine.device_call import DeviceCall
from rtpjax.engine.faults import report
from rtpjax.engine.runner import Runner, StepHandle
from rtpjax.engine.sampling import Sampled

if TYPE_CHECKING:
    from rtpjax.engine.loop import EngineLoop

logger = logging.getLogger(__name__)


class Leader:
    """The followers, as process 0 sees them.

    Args:
        hosts: Who takes part.
        timeout_s: How long to wait for the others.
        loop: Told the reason when the group cannot go on; the process ends soon after.
        limits: When a follower counts as gone.
    """

    def __init__(
        self,
        hosts: Hosts,
        timeout_s: int,
        loop: EngineLoop,
        limits: Limits | None = None,
    ):
        self._hosts = hosts
        self._timeout_s = timeout_s
        self._loop = loop
        self._limits = limits or Limits()
        self._host: Host | None = None

    def join(self) -> None:
        """Meets the followers, and watches them from then on.

        Raises:
            ConfigError: They do not come, or cannot be let in.
        """
        hosts = self._hosts
        logger.info("This is %s, the leader; waiting for the others", hosts)
        runtime.join(hosts, self._timeout_s)
        address = address_of(hosts.coordinator) if hosts.coordinator else runtime.own_address()
        self._host = Host(address)
        num_followers = hosts.num_processes - 1
        self._publisher = Publisher(self._host.steps, num_followers)
        runtime.broadcast(self._host.invitation.encode())
        self._publisher.wait_for_followers(self._timeout_s)
        self._watch = LeaderWatch(
            self._host.beats,
            num_followers,
            num_published=lambda: self._publisher.num_published,
            on_failure=self._loop.fail,
            on_leave=self._loop.leave,
            limits=self._limits,
            end=end_process,
        )
        self._watch.start()

    def start_serving(self) -> None:
        """Loading is over: from now on a silent follower is noticed within seconds."""
        self._watch.is_serving = True

    def publish(self, call: DeviceCall) -> None:
        """Has the followers make a device call, which this process makes next."""
        self._publisher.publish(call)

    @contextlib.contextmanager
    def all_or_none(self) -> Iterator[None]:
        """What fails inside leaves the hosts in different states: the group cannot go on."""
        try:
            yield
        except Exception as error:
            # Often the first sign of a follower that is gone: the collective says so. Callers read
            # the reason, so it has nothing of the error but an id.
            error_id = report("A device call of process 0", error)
            self._watch.fail(f"a step failed on process 0 (error {error_id} in its log)")
            raise

    def stop(self) -> None:
        """Ends the followers in good order; the engine has stopped."""
        if self._host is None:
            return
        self._watch.stop()
        self._publisher.stop()
        self._host.close()
        self._host = None
        runtime.leave()


class LeadingRunner(Runner):
    """A runner whose device calls the followers make too.

    Args:
        leader: Has joined.
        args: Of Runner.
    """

    def __init__(self, leader: Leader, *args: Any):
        self._leader = leader
        self._is_leading = False  # loading and warming up is what every process does by itself
        super().__init__(*args)

    def compile(self, progress: Callable[[int], object] | None = None) -> None:
        super().compile(progress)
        self._is_leading = True
        self._leader.start_serving()

    def execute(self, call: DeviceCall) -> Any:
        if not self._is_leading:
            return super().execute(call)
        self._leader.publish(call)
        with self._leader.all_or_none():
            return super().execute(call)

    def collect(self, handle: StepHandle) -> Sampled:
        if not self._is_leading:
            return super().collect(handle)
        with self._leader.all_or_none():
            return super().collect(handle)
