"""What RTP-LLM's variables and launchers' mean, and what is refused."""

from __future__ import annotations

import pytest

from rtpjax.distributed.hosts import Hosts, check_mesh_size, resolve
from rtpjax.errors import ConfigError
from rtpjax.start_server import read_settings

LWS = {"LWS_LEADER_ADDRESS": "m-0.m", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "n[1-4]"}
OMPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
ORTE = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:34911"}
# The second of RTP-LLM's two hosts with two GPUs each.
RTP = {
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "WORLD_RANK": "2",
    "COORDINATOR_ADDRESS": "h0:1234",
}


def hosts_of(environment: dict[str, str]) -> Hosts | None:
    return resolve(read_settings([], environment), environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"TP_SIZE": "2", "WORLD_SIZE": "2"},  # RTP-LLM's one host with two GPUs
        {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "WORLD_RANK": "0"},
        {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "COORDINATOR_ADDRESS": "h0:1"},
        {"WORLD_SIZE": "2", "MASTER_ADDR": "h0"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a shell in an allocation
        SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        LWS | {"LWS_GROUP_SIZE": "1", "LWS_WORKER_INDEX": "0"},
    ],
)
def test_one_process(environment: dict[str, str]) -> None:
    assert hosts_of(environment) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (RTP, (2, 1, "h0:1234", 2)),
        (RTP | {"WORLD_RANK": "0"}, (2, 0, "h0:1234", 2)),
        (RTP | {"COORDINATOR_ADDRESS": "h0"}, (2, 1, "h0:8476", 2)),
        (RTP | {"COORDINATOR_ADDRESS": "fd00::1"}, (2, 1, "[fd00::1]:8476", 2)),
        (RTP | {"COORDINATOR_ADDRESS": "[fd00::1]:7"}, (2, 1, "[fd00::1]:7", 2)),
        (
            RTP | {"COORDINATOR_ADDRESS": "", "MASTER_ADDR": "m", "MASTER_PORT": "29500"},
            (2, 1, "m:29500", 2),
        ),
        (LWS, (2, 1, "m-0.m:8476", None)),
        (LWS | {"WORLD_SIZE": "16"}, (2, 1, "m-0.m:8476", 8)),
        (LWS | {"COORDINATOR_ADDRESS": "other:9"}, (2, 1, "other:9", None)),
        (SLURM, (4, 3, None, None)),
        (SLURM | {"LOCAL_WORLD_SIZE": "8"}, (4, 3, None, 8)),
        (OMPI | ORTE, (2, 0, None, None)),
        (OMPI | {"COORDINATOR_ADDRESS": "h0:5"}, (2, 0, "h0:5", None)),
        (  # an indexed Job of Kubernetes
            {**RTP, "WORLD_RANK": "", "JOB_COMPLETION_INDEX": "1"},
            (2, 1, "h0:1234", 2),
        ),
    ],
)
def test_many_processes(environment: dict[str, str], expected: tuple) -> None:
    hosts = hosts_of(environment)
    assert hosts is not None
    found = hosts.num_processes, hosts.process_id, hosts.coordinator, hosts.num_local_devices
    assert found == expected
    assert hosts.is_leader == (expected[1] == 0)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (RTP | {"WORLD_SIZE": "5"}, "does not divide"),
        (RTP | {"WORLD_RANK": "1"}, "multiple of LOCAL_WORLD_SIZE"),
        (RTP | {"WORLD_RANK": "4"}, "process 2, but there are 2"),
        (RTP | {"WORLD_RANK": ""}, "WORLD_RANK is not set"),
        (RTP | {"COORDINATOR_ADDRESS": ""}, "COORDINATOR_ADDRESS is not set"),
        (RTP | {"COORDINATOR_ADDRESS": "h0:port"}, "expected HOST:PORT"),
        (RTP | {"LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE is not"),
        (RTP | {"WORLD_SIZE": ""}, "WORLD_SIZE is not"),
        (LWS | RTP | {"WORLD_SIZE": "8", "WORLD_RANK": ""}, "means 4 processes"),
        (LWS | RTP | {"WORLD_RANK": "0"}, "the launcher says 1"),
        (LWS | {"LWS_GROUP_SIZE": ""}, "set the missing one"),
        (LWS | {"LWS_WORKER_INDEX": "one"}, "whole number"),
        (LWS | {"WORLD_SIZE": "5"}, "does not divide"),
        (OMPI, "COORDINATOR_ADDRESS is not set"),  # Open MPI 5 tells JAX no address
    ],
)
def test_what_does_not_fit_together_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hosts_of(environment)


def test_the_mesh_takes_all_devices() -> None:
    hosts = hosts_of(RTP)
    assert hosts is not None
    check_mesh_size(hosts, 4)
    with pytest.raises(ConfigError, match="TP_SIZE times DP_SIZE is 2, but 2 processes with 2"):
        check_mesh_size(hosts, 2)
