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

from rtpjax.settings import REPLICA_SETTINGS, SETTINGS
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
    paths = {route for method, route, _ in all_routes() if method == "GET"}
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


def test_the_monitor_finds_the_pods():
    (monitor,) = documents(DEPLOY / "kubernetes/podmonitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert ("GET", endpoint["path"]) in {(method, route) for method, route, _ in all_routes()}
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
    assert {pair.split("=")[0] for pair in exported[1].split()} <= NAMES
