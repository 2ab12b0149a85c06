"""Which processes serve together, from settings or from what a cluster's launcher has set.

One process runs on each host (or on each part of a host). RTP-LLM counts devices, JAX counts
processes:

    WORLD_SIZE        devices of all processes together
    LOCAL_WORLD_SIZE  devices of this process, the same for all
    WORLD_RANK        the first of this process's devices: a multiple of LOCAL_WORLD_SIZE

    num_processes = WORLD_SIZE / LOCAL_WORLD_SIZE        process_id = WORLD_RANK / LOCAL_WORLD_SIZE
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rtpjax.errors import ConfigError

DEFAULT_PORT = 8476  # of the coordinator


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes of a group, and which of them this one is.

    Attributes:
        num_processes: At least 2.
        process_id: From 0; process 0 leads.
        coordinator: "host:port" of process 0; None where JAX finds it in what Slurm or Open MPI
            set.
        num_local_devices: Devices that each process uses; None leaves it to JAX (one each under
            Slurm and Open MPI, otherwise all that it sees).
        source: Where this comes from, for messages.
    """

    num_processes: int
    process_id: int
    coordinator: str | None
    num_local_devices: int | None
    source: str

    @property
    def is_leader(self) -> bool:
        """Whether this process has HTTP and the scheduler."""
        return self.process_id == 0

    def __str__(self) -> str:
        return f"process {self.process_id} of {self.num_processes} (by {self.source})"


@dataclasses.dataclass(frozen=True)
class _Cluster:
    """What a launcher says; process_id is None where it does not."""

    source: str
    num_processes: int
    process_id: int | None
    coordinator: str | None
    is_known_to_jax: bool = False


def resolve(settings: Mapping[str, Any], environment: Mapping[str, str]) -> Hosts | None:
    """The processes that serve together; None for one process alone.

    Args:
        settings: By name: WORLD_SIZE, WORLD_RANK, LOCAL_WORLD_SIZE, COORDINATOR_ADDRESS,
            MASTER_ADDR, MASTER_PORT.
        environment: Of the process, for what launchers set.

    Raises:
        ConfigError: They do not fit together, or one is missing.
    """
    world, local = settings["WORLD_SIZE"], settings["LOCAL_WORLD_SIZE"]
    cluster = _cluster(environment)
    # MASTER_ADDR alone says nothing: it is set in many containers that serve by themselves.
    is_asked_for = settings["WORLD_RANK"] or settings["COORDINATOR_ADDRESS"] is not None
    if not (cluster or is_asked_for) and (world is None or local in (None, world)):
        return None
    if local is None and world is not None and cluster is not None:
        local = _divided(world, cluster.num_processes, cluster.source)
    num_processes = _num_processes(world, local, cluster)
    if num_processes == 1:
        return None
    source = "WORLD_SIZE" if world is not None or cluster is None else cluster.source
    return Hosts(
        num_processes,
        _process_id(settings, environment, cluster, num_processes, local),
        _coordinator(settings, cluster),
        local,
        source,
    )


def check_mesh_size(hosts: Hosts, mesh_size: int) -> None:
    """Compares the devices that the mesh needs with those that the processes bring.

    Raises:
        ConfigError: They are not equal.
    """
    if hosts.num_local_devices is None:
        return  # known once JAX's runtime has started
    world = hosts.num_processes * hosts.num_local_devices
    if mesh_size != world:
        raise ConfigError(
            f"TP_SIZE times DP_SIZE is {mesh_size}, but {hosts.num_processes} processes with "
            f"{hosts.num_local_devices} devices each have {world}. A model over many hosts uses "
            f"all of their devices: set TP_SIZE (times DP_SIZE) to {world}."
        )


def _cluster(environment: Mapping[str, str]) -> _Cluster | None:
    """What a launcher has set, if it started more than one process."""
    found = (
        _leader_worker_set(environment)
        or _counted(
            environment, "Slurm", "SLURM_NTASKS", "SLURM_PROCID", known_by="SLURM_STEP_NODELIST"
        )
        or _counted(
            environment,
            "Open MPI",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_RANK",
            known_by="OMPI_MCA_orte_hnp_uri",
        )
    )
    return found if found is not None and found.num_processes > 1 else None


def _leader_worker_set(environment: Mapping[str, str]) -> _Cluster | None:
    """Source: https://lws.sigs.k8s.io/docs/reference/labels-annotations-and-environment-variables/"""
    address = environment.get("LWS_LEADER_ADDRESS")
    if not address:
        return None
    size = _number(environment, "LWS_GROUP_SIZE")
    index = _number(environment, "LWS_WORKER_INDEX")
    if size is None or index is None:
        raise ConfigError(
            "LWS_LEADER_ADDRESS is set, but LWS_GROUP_SIZE or LWS_WORKER_INDEX is not. "
            "LeaderWorkerSet sets all three; set the missing one."
        )
    return _Cluster("LeaderWorkerSet", size, index, f"{address}:{DEFAULT_PORT}")


def _counted(
    environment: Mapping[str, str], source: str, size: str, rank: str, *, known_by: str
) -> _Cluster | None:
    num_processes, process_id = _number(environment, size), _number(environment, rank)
    if num_processes is None or process_id is None:
        return None
    # A shell inside a Slurm allocation has a number of tasks, but no list of a step's nodes.
    if source == "Slurm" and known_by not in environment:
        return None
    return _Cluster(source, num_processes, process_id, None, known_by in environment)


def _num_processes(world: int | None, local: int | None, cluster: _Cluster | None) -> int:
    if world is None:
        if cluster is None:
            raise ConfigError(
                "COORDINATOR_ADDRESS or WORLD_RANK is set, but WORLD_SIZE is not: set it to the "
                "number of devices of all hosts together, and LOCAL_WORLD_SIZE to those of one."
            )
        return cluster.num_processes
    if local is None:
        raise ConfigError(
            f"WORLD_SIZE is {world} and COORDINATOR_ADDRESS or WORLD_RANK is set, but "
            "LOCAL_WORLD_SIZE is not: set it to the number of devices of one host."
        )
    num_processes = _divided(world, local, "LOCAL_WORLD_SIZE")
    if cluster is not None and cluster.num_processes != num_processes:
        raise ConfigError(
            f"WORLD_SIZE {world} with LOCAL_WORLD_SIZE {local} means {num_processes} processes, "
            f"but {cluster.source} started {cluster.num_processes}. Make them equal."
        )
    return num_processes


def _divided(world: int, parts: int, name: str) -> int:
    if world % parts:
        raise ConfigError(
            f"WORLD_SIZE is {world}, which {parts} ({name}) does not divide: every process brings "
            "the same number of devices."
        )
    return world // parts


def _process_id(
    settings: Mapping[str, Any],
    environment: Mapping[str, str],
    cluster: _Cluster | None,
    num_processes: int,
    local: int | None,
) -> int:
    rank = settings["WORLD_RANK"]
    launched = cluster.process_id if cluster else _number(environment, "JOB_COMPLETION_INDEX")
    if rank is None:
        if launched is None:
            raise ConfigError(
                f"WORLD_RANK is not set: which of the {num_processes} processes is this? Set it to "
                f"the first device of this one: 0, {local}, ... ."
            )
        process_id = launched
    elif local is None:
        raise ConfigError("WORLD_RANK counts devices: set LOCAL_WORLD_SIZE too.")
    elif rank % local:
        raise ConfigError(
            f"WORLD_RANK is {rank}: it is the first device of this host, so a multiple of "
            f"LOCAL_WORLD_SIZE ({local}): 0 for the first host, {local} for the second."
        )
    else:
        process_id = rank // local
        if launched not in (None, process_id):
            raise ConfigError(
                f"WORLD_RANK {rank} means process {process_id}, but the launcher says {launched}. "
                "Leave WORLD_RANK out."
            )
    if process_id >= num_processes:
        what = "WORLD_RANK" if rank is not None else "the launcher's rank"
        raise ConfigError(
            f"{what} means process {process_id}, but there are {num_processes}: 0 to "
            f"{num_processes - 1}."
        )
    return process_id


def _coordinator(settings: Mapping[str, Any], cluster: _Cluster | None) -> str | None:
    address, master = settings["COORDINATOR_ADDRESS"], settings["MASTER_ADDR"]
    if address is not None:
        return _with_port(address, DEFAULT_PORT)
    if master is not None:
        return _with_port(master, settings["MASTER_PORT"] or DEFAULT_PORT)
    if cluster is None or not (cluster.coordinator or cluster.is_known_to_jax):
        raise ConfigError(
            "COORDINATOR_ADDRESS is not set: set it to HOST:PORT of the process with WORLD_RANK 0, "
            "the same for all processes; the port must be free there."
        )
    return cluster.coordinator


def _with_port(address: str, port: int) -> str:
    """host:port, also of a bare or bracketed IPv6 address."""
    if address.count(":") > 1 and not address.startswith("["):
        return f"[{address}]:{port}"
    host, colon, named = address.rpartition(":")
    if not colon or address.endswith("]"):
        return f"{address}:{port}"
    if not host or not named.isdecimal() or not 0 < int(named) <= 65535:
        raise ConfigError(f"COORDINATOR_ADDRESS is {address!r}; expected HOST:PORT.")
    return address


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    if text and not text.isdecimal():
        raise ConfigError(f"{name} is {text!r}; expected a whole number.")
    return int(text) if text else None
