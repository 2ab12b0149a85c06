"""Starts the server: python -m rtpjax.start_server.

Every setting (rtpjax/settings.py) is an environment variable and a flag of the same name in lower
case; a flag wins. This is the only place that reads the environment for the server.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtpjax.distributed.hosts import Hosts, check_mesh_size, resolve
from rtpjax.errors import CheckpointError, ConfigError, EngineError
from rtpjax.logs import configure_logging
from rtpjax.settings import NOT_YET, SETTINGS, Setting

if TYPE_CHECKING:
    from rtpjax.engine.async_engine import AsyncLLMEngine
    from rtpjax.engine.link import Link
    from rtpjax.served_model import ServedModel
    from server.config import ServerConfig

logger = logging.getLogger("rtpjax")

MIB = 1 << 20


def read_settings(
    argv: Sequence[str],
    environment: Mapping[str, str],
    settings: Sequence[Setting] = SETTINGS,
    prog: str = "rtpjax serve",
) -> dict[str, Any]:
    """All settings by name: from a flag, else the environment, else the default.

    Args:
        argv: The flags.
        environment: Where the others are looked for.
        settings: Which there are.
        prog: The command, for --help.

    Raises:
        ConfigError: A value cannot be used.
        SystemExit: A flag is unknown, or --help.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serves a model over the OpenAI API. Each flag is also an environment variable "
        "(--start_port and START_PORT); a flag wins.",
    )
    for setting in settings:
        flag = f"--{setting.name.lower()}"
        names = dict.fromkeys((flag, flag.replace("_", "-")))
        parser.add_argument(*names, dest=setting.name, metavar="X", help=setting.help)
    flags = vars(parser.parse_args(list(argv)))
    values = {}
    for setting in settings:
        text = flags[setting.name]
        if text and setting.file_name:
            logger.warning(
                "--%s has a secret, which everybody on this host sees with ps; %s takes a file.",
                setting.name.lower(),
                setting.file_name,
            )
        text = environment.get(setting.name) if text is None else text
        try:
            values[setting.name] = setting.default if not text else setting.parse(text)
        except ValueError as error:
            raise ConfigError(f"{setting.name} is {text!r}: {error}.") from error
    return values


def warn_not_yet(environment: Mapping[str, str]) -> None:
    """Names the settings of RTP-LLM that are set and have no effect here."""
    for name, harmless in NOT_YET.items():
        value = environment.get(name, "")
        if value.lower() not in harmless:
            logger.warning("%s=%s has no effect: rtpjax does not support it yet.", name, value)


def _announce(url: str, model_name: str, config: ServerConfig, started: float) -> None:
    """The ready line, with something to paste."""
    if config.load_format == "dummy":
        model_name += " (random weights: LOAD_FORMAT=dummy)"
    seconds = time.perf_counter() - started
    print(
        f"\nrtpjax is ready: {model_name} at {url} (after {seconds:.1f} s). Try:\n\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        """    -d '{"messages": [{"role": "user", "content": "Who are you?"}]}'\n""",
        flush=True,
    )


def serve(settings: Mapping[str, Any], hosts: Hosts | None = None) -> None:
    """Runs the server until SIGTERM or SIGINT.

    Args:
        settings: By name.
        hosts: The processes of a mesh over many hosts; this one is their leader.

    Raises:
        ConfigError: The port is in use, or a setting cannot be met.
        CheckpointError: The checkpoint cannot be had, or does not fit its model.
        EngineError: The engine has failed, after it had started.
    """
    started = time.perf_counter()
    from server.lifecycle import bind, run

    # Before anything that takes long: a port in use is said at once.
    with bind(settings["START_HOST"], settings["START_PORT"]) as sock:
        engine, server_config = prepare(settings, hosts)
        run(
            engine,
            server_config,
            sock=sock,
            on_ready=lambda url: _announce(url, engine.model_name, server_config, started),
        )


def prepare(
    settings: Mapping[str, Any], hosts: Hosts | None = None
) -> tuple[AsyncLLMEngine, ServerConfig]:
    """The engine, its weights still to be loaded, and the settings of the HTTP side.

    Args:
        settings, hosts: As in serve.

    Raises:
        ConfigError: A setting cannot be met.
        CheckpointError: The checkpoint cannot be had.
    """
    link, model = _begin(settings, hosts)
    from rtpjax.engine.async_engine import AsyncLLMEngine
    from server.config import ServerConfig
    from server.sampling_defaults import log_sampling_defaults, sampling_defaults

    defaults = sampling_defaults(model.generation_config)
    log_sampling_defaults(defaults)
    server_config = ServerConfig(
        host=settings["START_HOST"],
        port=settings["START_PORT"],
        api_keys=keys_of(settings, "API_KEYS"),
        admin_api_keys=keys_of(settings, "ADMIN_API_KEY"),
        operator_hosts=settings["OPERATOR_HOSTS"],
        share_prefixes=settings["SHARE_PREFIXES"],
        cors_allow_origins=settings["CORS_ALLOW_ORIGINS"],
        max_body_bytes=settings["MAX_BODY_MB"] * MIB,
        max_bodies_bytes=settings["MAX_BODIES_MB"] * MIB,
        max_connections=settings["MAX_CONNECTIONS"],
        write_timeout_s=settings["WRITE_TIMEOUT_S"],
        prepare_timeout_s=settings["PREPARE_TIMEOUT_S"],
        drain_timeout_s=settings["DRAIN_TIMEOUT_S"],
        tool_call_parser=settings["TOOL_CALL_PARSER"],
        reasoning_parser=settings["REASONING_PARSER"],
        allow_user_template=settings["ALLOW_USER_TEMPLATE"],
        allow_control_tokens_in_content=settings["ALLOW_CONTROL_TOKENS_IN_CONTENT"],
        model_type=model.model_type,
        ignores_unknown_fields=settings["UNKNOWN_FIELDS"] == "ignore",
        sampling_defaults=defaults,
        load_format=settings["LOAD_FORMAT"],
        served_model_names=settings["SERVED_MODEL_NAME"],
    )
    return AsyncLLMEngine(link, model.tokenizer, model.name), server_config


def _begin(settings: Mapping[str, Any], hosts: Hosts | None) -> tuple[Link, ServedModel]:
    """The way to the engine, which loads nothing yet, and what is known of its model."""
    if settings["ENGINE_PROCESS"]:
        from rtpjax.engine.process import EngineProcess

        process = EngineProcess("rtpjax.served_model", "open_in_process", settings, hosts)
        importlib.import_module("server.app")  # meanwhile
        return process, process.describe()
    from rtpjax.engine.thread import ThreadLink
    from rtpjax.served_model import open_served

    opened = open_served(settings, hosts)
    return ThreadLink(opened.load), opened.description


def keys_of(settings: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Keys from a setting and from the file of `{name}_FILE`.

    Raises:
        ConfigError: The file cannot be read, or has no key.
    """
    path: Path | None = settings[f"{name}_FILE"]
    if path is None:
        return settings[name]
    try:
        lines = path.expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{name}_FILE is {str(path)!r}: {reason}.") from error
    lines = [line.strip() for line in lines]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:  # an empty file must not open the server to anyone
        raise ConfigError(f"{name}_FILE is {str(path)!r}, which has no key; write one a line.")
    return (*settings[name], *keys)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the settings and serves; returns the exit status."""
    from server.request_id import RequestIdFilter

    try:
        settings = read_settings(sys.argv[1:] if argv is None else argv, os.environ)
        for handler in configure_logging(settings):
            handler.addFilter(RequestIdFilter())
        warn_not_yet(os.environ)
        hosts = resolve(settings, os.environ)
        if hosts is not None:
            check_mesh_size(hosts, settings["TP_SIZE"] * settings["DP_SIZE"])
        if hosts is None or hosts.is_leader:
            serve(settings, hosts)
        else:
            from rtpjax.served_model import follow_leader

            follow_leader(settings, hosts)
    except (ConfigError, CheckpointError) as error:
        print(f"rtpjax cannot start: {error}", file=sys.stderr)
        return 1
    except EngineError as error:
        print(f"rtpjax has stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
