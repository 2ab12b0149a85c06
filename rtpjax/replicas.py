"""Starts replicas of the server on Ray Serve: rtpjax replicas --num_replicas 2.

Settings are those of the server (rtpjax/settings.py) and REPLICA_SETTINGS. Ray's own tools take the
application by name, with settings as arguments: serve run rtpjax.replicas:application
NUM_REPLICAS=2 CHECKPOINT_PATH=/models/llama. docs/scaling.md says when to use which.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rtpjax.distributed.hosts import resolve
from rtpjax.errors import CheckpointError, ConfigError
from rtpjax.logs import configure_logging
from rtpjax.settings import REPLICA_SETTINGS, SETTINGS
from rtpjax.start_server import MIB, prepare, read_settings, warn_not_yet

if TYPE_CHECKING:
    from ray.serve import Application

_ALL_SETTINGS = (*SETTINGS, *REPLICA_SETTINGS)


def application(args: Mapping[str, Any]) -> Application:
    """The application for Ray's `serve run` and `serve deploy`.

    Args:
        args: Settings by name; those that are not there come from the environment.

    Raises:
        ConfigError: A value cannot be used, or a name is not known.
    """
    known = {setting.name for setting in _ALL_SETTINGS}
    unknown = sorted(set(args) - known)
    if unknown:
        raise ConfigError(f"unknown settings: {', '.join(unknown)}. `rtpjax replicas --help`.")
    texts = {name: str(value) for name, value in args.items()}
    return deployments(read_settings((), {**os.environ, **texts}, _ALL_SETTINGS))


def deployments(settings: Mapping[str, Any]) -> Application:
    """Fronts, and the replicas that they pass requests to.

    Raises:
        ConfigError: Ray Serve is not installed, or a setting cannot be met.
    """
    try:
        from ray import serve
        from ray.serve.config import AutoscalingConfig, RequestRouterConfig
    except ImportError as error:
        raise ConfigError(
            "Replicas run on Ray Serve, which is not installed: pip install 'rtpjax[ray]'."
        ) from error
    from server.replicas.front import Front
    from server.replicas.replica import Replica

    if resolve(settings, {}) is not None:
        raise ConfigError(
            "A replica runs on one host: leave WORLD_SIZE and the names around it out, or start a "
            "model over many hosts with rtpjax serve (docs/scaling.md)."
        )
    least, most = settings["NUM_REPLICAS"], settings["MAX_REPLICAS"] or settings["NUM_REPLICAS"]
    if most < least:
        raise ConfigError(f"MAX_REPLICAS is {most}, less than NUM_REPLICAS, {least}.")
    num_gpus = _gpus_per_replica(settings)
    concurrency = settings["CONCURRENCY_LIMIT"] or (256 if num_gpus else 32)
    target = settings["TARGET_REQUESTS"] or concurrency
    replica = serve.deployment(
        name="replica",
        max_ongoing_requests=2 * max(concurrency, target),  # what more there is waits in the front
        autoscaling_config=AutoscalingConfig(
            min_replicas=least, max_replicas=most, target_ongoing_requests=target
        ),
        request_router_config=RequestRouterConfig.model_validate(
            {
                "request_router_class": "server.replicas.router.PrefixRouter",
                "request_router_kwargs": {"slack": max(4, concurrency // 16)},
            }
        ),
        ray_actor_options={"num_gpus": num_gpus, "num_cpus": 1},
        graceful_shutdown_timeout_s=settings["DRAIN_TIMEOUT_S"] + 5,
        health_check_period_s=2,
        health_check_timeout_s=30,
    )(Replica)
    front = serve.deployment(
        name="front",
        num_replicas=settings["NUM_FRONTS"],
        max_ongoing_requests=settings["QUEUE_LIMIT"],
        ray_actor_options={"num_cpus": 0},
    )(Front)
    own = {**settings, "START_HOST": "127.0.0.1", "START_PORT": 0}
    return front.bind(
        replica.bind(partial(prepare, own)), max_body_bytes=settings["MAX_BODY_MB"] * MIB
    )


def _gpus_per_replica(settings: Mapping[str, Any]) -> int:
    """Devices of a replica, 0 where the cluster has no GPU."""
    import ray

    has_gpus = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
    return settings["TP_SIZE"] * settings["DP_SIZE"] if has_gpus else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Starts (or joins, with RAY_ADDRESS) Ray, and serves until it is interrupted."""
    try:
        settings = read_settings(
            sys.argv[1:] if argv is None else argv, os.environ, _ALL_SETTINGS, "rtpjax replicas"
        )
        configure_logging(settings)
        warn_not_yet(os.environ)
        _run(settings)
    except (ConfigError, CheckpointError) as error:
        print(f"rtpjax cannot start: {error}", file=sys.stderr)
        return 1
    return 0


def _run(settings: Mapping[str, Any]) -> None:
    try:
        import ray
        from ray import serve
    except ImportError:
        deployments(settings)  # says what to install
        raise
    # Actors of this driver import its packages: from here where it runs in a source tree.
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}})
    serve.start(http_options={"host": settings["START_HOST"], "port": settings["START_PORT"]})
    serve.run(deployments(settings), name="rtpjax", route_prefix="/", blocking=False)
    print(f"\nrtpjax is ready: {settings['NUM_REPLICAS']} replicas at "
          f"http://localhost:{settings['START_PORT']}\n", flush=True)  # fmt: skip
    _wait()
    serve.shutdown()


def _wait() -> None:
    """Until SIGINT or SIGTERM."""
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    signal.sigwait((signal.SIGINT, signal.SIGTERM))
