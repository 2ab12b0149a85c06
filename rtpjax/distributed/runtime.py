"""JAX's distributed runtime: starting it, agreeing over it, ending it."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils

from rtpjax.distributed.channel import address_of
from rtpjax.distributed.heartbeat import end_process
from rtpjax.distributed.hosts import Hosts
from rtpjax.errors import ConfigError

logger = logging.getLogger(__name__)

# JAX's own watch ends a process without a word, so ours must be much faster than it.
_JAX_HEARTBEAT_S = 100
_SHUTDOWN_S = 10
_GIVING_UP_S = 60
_DESCRIPTION_BYTES = 1 << 14
_MIB = 1 << 20


def join(hosts: Hosts, timeout_s: int) -> None:
    """Meets the other processes; afterwards jax.devices() are those of all.

    Args:
        hosts: Who takes part.
        timeout_s: How long to wait for the others.

    Raises:
        ConfigError: They do not meet in time, or bring other devices than they should.
    """
    # Its handler of SIGTERM would take the signal away from the drain.
    jax.config.update("jax_enable_preemption_service", False)
    if hosts.num_local_devices is not None and jax.config.values["jax_num_cpu_devices"] < 0:
        jax.config.update("jax_num_cpu_devices", hosts.num_local_devices)
    bind = None
    if hosts.coordinator is not None:
        address = address_of(hosts.coordinator)
        if hosts.is_leader:
            bind = _bindable(address, hosts.coordinator)
        else:
            _wait_for(hosts.coordinator, address, timeout_s)
    give_up = threading.Timer(timeout_s, _give_up, (hosts, timeout_s))
    give_up.daemon = True
    give_up.start()
    local = None if hosts.num_local_devices is None else list(range(hosts.num_local_devices))
    try:
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.num_processes,
            hosts.process_id,
            local,
            # Where we know everything, JAX is not to look at the launcher's variables again.
            cluster_detection_method=None if hosts.coordinator is None else "deactivate",
            initialization_timeout=timeout_s + _GIVING_UP_S,
            heartbeat_timeout_seconds=_JAX_HEARTBEAT_S,
            shutdown_timeout_seconds=_SHUTDOWN_S,
            coordinator_bind_address=bind,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"JAX's distributed runtime cannot start: {error}") from error
    finally:
        give_up.cancel()
    _check_devices(hosts)


def check_mesh(mesh_size: int) -> None:
    """Compares the devices that the mesh needs with those that are there.

    Raises:
        ConfigError: They are not equal; a process without a share in the mesh could not serve.
    """
    if jax.device_count() != mesh_size:
        raise ConfigError(
            f"TP_SIZE times DP_SIZE is {mesh_size}, but {jax.process_count()} processes with "
            f"{jax.local_device_count()} devices each have {jax.device_count()}. A model over many "
            f"hosts uses all of their devices: set TP_SIZE (times DP_SIZE) to {jax.device_count()}."
        )


def leave() -> None:
    """Ends the runtime once all processes have come to this point; Python may end then."""
    jax.distributed.shutdown()


def broadcast(data: bytes, size: int = 1024) -> bytes:
    """What process 0 has, for all.

    Args:
        data: In process 0; not read in others.
        size: At least its length; the same in all processes.
    """
    return multihost_utils.broadcast_one_to_all(_padded(data, size)).tobytes().rstrip(b"\0")


def smallest_bytes(num_bytes: int) -> int:
    """The smallest of the processes' values, in whole MiB if there are several."""
    if jax.process_count() == 1:
        return num_bytes
    values = multihost_utils.process_allgather(np.int32(num_bytes // _MIB))
    return int(values.min()) * _MIB


def check_same(description: Mapping[str, object]) -> None:
    """Refuses to go on where processes differ: they would compile different programs.

    Args:
        description: What must be the same, by name.

    Raises:
        ConfigError: It is not; in all processes.
    """
    if jax.process_count() == 1:
        return
    texts = {name: str(value) for name, value in description.items()}
    own = _padded(json.dumps(texts).encode(), _DESCRIPTION_BYTES)
    gathered = multihost_utils.process_allgather(own)
    first, *others = (json.loads(row.tobytes().rstrip(b"\0")) for row in gathered)
    for process_id, other in enumerate(others, 1):
        names = [name for name in texts if first[name] != other[name]]
        if names:
            found = "; ".join(f"{name}: {first[name]} and {other[name]}" for name in names)
            raise ConfigError(
                f"processes 0 and {process_id} were started differently ({found}). Start all "
                "with the same settings, checkpoint and versions."
            )


def own_address() -> str:
    """An IP address of this machine that others can reach, where no coordinator names one."""
    with contextlib.suppress(OSError):
        address = socket.gethostbyname(socket.gethostname())
        if not address.startswith("127."):
            return address
    for addresses in psutil.net_if_addrs().values():
        for entry in addresses:
            if entry.family == socket.AF_INET and not entry.address.startswith("127."):
                return entry.address
    return "127.0.0.1"


def _padded(data: bytes, size: int) -> np.ndarray:
    assert len(data) <= size
    return np.frombuffer(data.ljust(size, b"\0"), np.uint8)


def _bindable(address: str, coordinator: str) -> str:
    """The coordinator's address for JAX to bind, tried first: JAX ends the process if it cannot.

    Raises:
        ConfigError: It is no address of this machine, or the port is in use.
    """
    port = int(coordinator.rpartition(":")[2])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((address, port))
    except OSError as error:
        raise ConfigError(
            f"COORDINATOR_ADDRESS is {coordinator}, but process 0, which this is, cannot listen "
            f"there ({error.strerror}): name an address of this host and a free port."
        ) from error
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _wait_for(coordinator: str, address: str, timeout_s: int) -> None:
    """Returns once the coordinator listens.

    Raises:
        ConfigError: It has not in time.
    """
    port = int(coordinator.rpartition(":")[2])
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection((address, port), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"COORDINATOR_ADDRESS is {coordinator}, but nobody answered there in "
                    f"{timeout_s} s ({error}). Start process 0 on that host, and let the hosts "
                    "reach each other."
                ) from error
        time.sleep(0.2)


def _give_up(hosts: Hosts, timeout_s: int) -> None:
    """Ends the process with a reason; JAX would abort it with a stack of C++ frames."""
    logger.critical(
        "rtpjax cannot start: the %d processes did not meet in %d s (JOIN_TIMEOUT_S). Start all of "
        "them, each with its own WORLD_RANK and all with the same COORDINATOR_ADDRESS.",
        hosts.num_processes,
        timeout_s,
    )
    end_process()


def _check_devices(hosts: Hosts) -> None:
    local = jax.local_device_count()
    if hosts.num_local_devices not in (None, local):
        raise ConfigError(
            f"LOCAL_WORLD_SIZE is {hosts.num_local_devices}, but {local} "
            f"{jax.default_backend()} device(s) are there. Set it to {local} (on a CPU "
            "JAX_NUM_CPU_DEVICES sets their number)."
        )
    if jax.device_count() != local * hosts.num_processes:
        raise ConfigError(
            f"the {hosts.num_processes} processes have {jax.device_count()} devices together and "
            f"{local} are here: every process must bring the same number."
        )
