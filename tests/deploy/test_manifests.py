"""What deploy/ says about this program must be true: names of settings, ports, routes, modules."""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rtpjax.distributed import hosts
from rtpjax.errors import ConfigError
from rtpjax.replicas import application
from rtpjax.settings import REPLICA_SETTINGS, SETTINGS
from rtpjax.start_server import read_settings
from server.routes import all_routes

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
NAMES = {setting.name for setting in SETTINGS}
DEFAULTS = {setting.name: setting.default for setting in SETTINGS}
MANIFESTS = sorted(DEPLOY.glob("kubernetes/*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return [doc for doc in yaml.safe_load_all(path.read_text()) if doc]


def containers(node: Any) -> Iterator[dict[str, Any]]:
    """All containers of a manifest, at any depth."""
    if isinstance(node, dict):
        yield from node.get("containers", [])
        for value in node.values():
            yield from containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from containers(value)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_every_manifest_names_real_settings_ports_and_routes(path: Path):
    paths = {route.path for route in all_routes() if route.method == "GET"}
    for doc in documents(path):
        assert {"apiVersion", "kind", "metadata", "spec"} <= doc.keys()
        for container in containers(doc):
            environment = {e["name"]: e["value"] for e in container["env"]}
            assert environment.keys() <= NAMES
            assert all(isinstance(value, str) for value in environment.values())
            ports = {p["name"]: p["containerPort"] for p in container.get("ports", [])}
            if ports:
                port = int(environment.get("START_PORT", DEFAULTS["START_PORT"]))
                assert ports == {"http": port}
            probes = {k: v["httpGet"] for k, v in container.items() if k.endswith("Probe")}
            assert probes.keys() == ({"startupProbe", "readinessProbe", "livenessProbe"} if ports
                                     else set())  # fmt: skip
            for probe in probes.values():
                assert probe["path"] in paths and probe["port"] in ports


def test_a_pod_has_longer_than_its_drain():
    for path in MANIFESTS:
        for spec in re.finditer(r"terminationGracePeriodSeconds: (\d+)", path.read_text()):
            drains = re.findall(r'DRAIN_TIMEOUT_S, value: "(\d+)"', path.read_text())
            assert all(int(spec[1]) > int(drain) for drain in drains)


def test_leader_and_followers_run_the_same_program():
    (group, _) = documents(DEPLOY / "kubernetes/leaderworkerset.yaml")
    template = group["spec"]["leaderWorkerTemplate"]
    (leader,), (follower,) = (
        list(containers(template[name])) for name in ("leaderTemplate", "workerTemplate")
    )
    assert leader["image"] == follower["image"]
    gpus = [c["resources"]["limits"]["nvidia.com/gpu"] for c in (leader, follower)]
    for container in (leader, follower):
        environment = {e["name"]: e["value"] for e in container["env"]}
        assert int(environment["TP_SIZE"]) == template["size"] * int(gpus[0])
        assert environment["CHECKPOINT_PATH"] == "/model"
    assert gpus[0] == gpus[1]


@pytest.mark.parametrize("index", [0, 1])
def test_pods_of_a_group_find_each_other(index: int):
    (group, _) = documents(DEPLOY / "kubernetes/leaderworkerset.yaml")
    template = group["spec"]["leaderWorkerTemplate"]
    (container,) = containers(template[("leaderTemplate", "workerTemplate")[index]])
    launched = {  # as LeaderWorkerSet sets them
        "LWS_LEADER_ADDRESS": "rtpjax-0.rtpjax.default",
        "LWS_GROUP_SIZE": str(template["size"]),
        "LWS_WORKER_INDEX": str(index),
    }
    environment = {e["name"]: e["value"] for e in container["env"]} | launched
    found = hosts.resolve(read_settings([], environment), environment)
    assert found is not None
    assert (found.num_processes, found.process_id) == (template["size"], index)
    assert found.coordinator == f"rtpjax-0.rtpjax.default:{hosts.DEFAULT_PORT}"
    assert found.num_local_devices is None  # all GPUs of the pod


def test_the_monitor_finds_the_pods():
    (monitor,) = documents(DEPLOY / "kubernetes/podmonitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert ("GET", endpoint["path"]) in {(route.method, route.path) for route in all_routes()}
    wanted = monitor["spec"]["selector"]["matchLabels"]
    for name in ("deployment", "leaderworkerset"):
        text = (DEPLOY / f"kubernetes/{name}.yaml").read_text()
        assert f"app: {wanted['app']}" in text


def test_the_ray_application():
    (config,) = documents(DEPLOY / "ray/serve.yaml")
    (application,) = config["applications"]
    module, function = application["import_path"].split(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert application["args"].keys() <= NAMES | {s.name for s in REPLICA_SETTINGS}


def test_the_images_have_what_the_package_has():
    include = re.search(r"include = \[(.*)\]", (ROOT / "pyproject.toml").read_text())
    assert include is not None
    packages = set(re.findall(r'"(\w+)\*"', include[1]))
    for path in DEPLOY.glob("docker/*.Dockerfile"):
        assert packages <= set(re.findall(r"COPY (\w+) ", path.read_text())), path.name


def test_the_job_script_is_bash_and_names_real_settings():
    path = DEPLOY / "slurm/rtpjax.sbatch"
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    exported = re.search(r"^export (.*)$", path.read_text(), re.MULTILINE)
    assert exported is not None
    values = dict(re.findall(r"(\w+)=\$\{\w+:-(\d+)\}", exported[1]))
    assert values.keys() <= NAMES
    nodes, gpus = (
        re.search(rf"^#SBATCH --{option}=(\d+)$", path.read_text(), re.MULTILINE)
        for option in ("nodes", "gpus-per-node")
    )
    assert nodes is not None and gpus is not None
    launched = {"SLURM_NTASKS": nodes[1], "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "node[1-2]"}
    settings = read_settings([], values | launched)
    found = hosts.resolve(settings, launched)
    assert found is not None
    assert (found.num_processes, found.num_local_devices) == (int(nodes[1]), int(gpus[1]))
    hosts.check_mesh_size(found, settings["TP_SIZE"] * settings["DP_SIZE"])


def test_replicas_over_many_hosts_are_refused():
    pytest.importorskip("ray.serve", reason="needs pip install rtpjax[ray]")
    with pytest.raises(ConfigError, match="A replica runs on one host"):
        application({"WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "WORLD_RANK": 0,
                     "COORDINATOR_ADDRESS": "host0"})  # fmt: skip
