"""Starts the server: python -m rtpjax.start_server.

Every setting (rtpjax/settings.py) is an environment variable and a flag of the same name in lower
case; a flag wins. This is the only place that reads the environment for the server.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtpjax.distributed.hosts import Hosts, check_mesh_size, resolve
from rtpjax.errors import CheckpointError, ConfigError, EngineError
from rtpjax.settings import NOT_YET, SETTINGS, Setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from rtpjax.checkpoint import Checkpoint
    from rtpjax.config import EngineSettings, KvCacheDtype
    from rtpjax.distributed.leader import Leader
    from rtpjax.engine.async_engine import AsyncLLMEngine
    from rtpjax.engine.engine import LLMEngine
    from server.config import ServerConfig

logger = logging.getLogger("rtpjax")

MIB = 1 << 20
_CONFIG_FILES = ("*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken")
_MODEL_FILES = (*_CONFIG_FILES, "*.safetensors")


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


def resolve_checkpoint(named: str | None, cache: Path, load_format: str = "auto") -> Path:
    """The folder or file that CHECKPOINT_PATH means; fetches what is not there.

    Args:
        named: Its value.
        cache: Where fetched models are kept.
        load_format: LOAD_FORMAT; for dummy, a config.json is what is looked for.

    Raises:
        CheckpointError: It is neither there nor to be had.
    """
    from rtpjax.dummy_checkpoint import DUMMY, find_config, is_config_file, is_hub_id

    if load_format == DUMMY:
        return find_config(named, lambda hub_id: _from_hub(hub_id, cache, _CONFIG_FILES))
    from checkpoints_conv.package_models import DEFAULT, MODELS, ensure_model

    if (named or DEFAULT) in MODELS and not Path(named or DEFAULT).exists():
        return ensure_model(cache, MODELS[named or DEFAULT])
    assert named is not None
    path = Path(named).expanduser()
    if is_config_file(path):
        raise CheckpointError(
            f"CHECKPOINT_PATH is {named}: a config.json has no weights. Name its folder, or set "
            "LOAD_FORMAT=dummy for random weights."
        )
    if path.exists():
        return path
    if not is_hub_id(named):
        raise CheckpointError(f"CHECKPOINT_PATH is {named}: no such file or folder.{_hint(named)}")
    return _from_hub(named, cache, _MODEL_FILES)


def _hint(named: str) -> str:
    from rtpjax.plan import presets

    is_preset = named.lower() in presets.names()
    return " With LOAD_FORMAT=dummy it is a model of random weights." if is_preset else ""


def _from_hub(named: str, cache: Path, patterns: Sequence[str]) -> Path:
    """The folder with a hub id's files."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = huggingface_hub.snapshot_download(
            named, allow_patterns=list(patterns), cache_dir=cache / "hub"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"CHECKPOINT_PATH is {named}: no such folder, and as a hub id it cannot be fetched "
            f"({type(error).__name__}). Check the name, the network, and HF_TOKEN for gated models."
        ) from error
    return Path(folder)


def with_model_type(config: dict[str, Any], model_type: str | None) -> dict[str, Any]:
    """config with the architecture that MODEL_TYPE names.

    Raises:
        ConfigError: No architecture has that name.
    """
    if model_type is None:
        return config
    from rtpjax.models import architectures

    def plain(name: str) -> str:
        return name.lower().removesuffix("forcausallm").replace("_", "").replace("-", "")

    for name in architectures():
        if plain(name) == plain(model_type):
            return {**config, "architectures": [name]}
    known = ", ".join(sorted(architectures()))
    raise ConfigError(f"MODEL_TYPE is {model_type!r}; known are {known}.")


def configure_logging(settings: Mapping[str, Any]) -> None:
    from server.request_id import RequestIdFilter

    handlers: list[logging.Handler] = []
    if settings["LOG_FILE"]:
        handlers.append(logging.FileHandler(settings["LOG_FILE"]))
    if not handlers or settings["FT_SERVER_TEST"]:
        handlers.append(logging.StreamHandler())
    logging.basicConfig(
        level=settings["LOG_LEVEL"],
        format="%(asctime)s %(levelname)s %(name)s:%(request)s %(message)s",
        handlers=handlers,
        force=True,
    )
    for handler in handlers:
        handler.addFilter(RequestIdFilter())
    for name in ("jax", "absl", "httpx", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _configure_jax(cache: Path) -> None:
    """Compiled programs are kept, whatever their size."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _engine_settings(settings: Mapping[str, Any]) -> EngineSettings:
    from rtpjax.config import EngineSettings

    cache_mib = settings["KV_CACHE_MEM_MB"]
    return EngineSettings(
        act_type=settings["ACT_TYPE"],
        max_model_len=settings["MAX_SEQ_LEN"],
        page_size=settings["SEQ_SIZE_PER_BLOCK"],
        max_num_seqs=settings["CONCURRENCY_LIMIT"],
        max_num_batched_tokens=settings["MAX_BATCH_TOKENS_SIZE"],
        max_num_waiting=settings["QUEUE_LIMIT"],
        kv_cache_bytes=None if cache_mib is None else cache_mib * MIB,
        kv_cache_dtype=_kv_cache_dtype(settings),
        reserved_bytes=settings["RESERVER_RUNTIME_MEM_MB"] * MIB,
        use_prefix_cache=settings["REUSE_CACHE"],
        tp_size=settings["TP_SIZE"],
        dp_size=settings["DP_SIZE"],
        ep_size=settings["EP_SIZE"],
        attention_implementation=settings["ATTENTION_IMPLEMENTATION"],
        quantization=quantization_of(settings),
    )


def _kv_cache_dtype(settings: Mapping[str, Any]) -> KvCacheDtype | None:
    if settings["INT8_KV_CACHE"] and settings["FP8_KV_CACHE"]:
        raise ConfigError("INT8_KV_CACHE and FP8_KV_CACHE are both set; a cache has one format.")
    if settings["INT8_KV_CACHE"]:
        return "int8"
    return "fp8" if settings["FP8_KV_CACHE"] else None


def quantization_of(settings: Mapping[str, Any]) -> str | None:
    """What QUANTIZATION and INT8_MODE mean together.

    Raises:
        ConfigError: They contradict each other.
    """
    method = settings["QUANTIZATION"]
    if settings["INT8_MODE"] and method not in (None, "int8"):
        raise ConfigError(
            f"INT8_MODE is 1 and QUANTIZATION is {method}: a contradiction. Leave one of them out."
        )
    return "int8" if settings["INT8_MODE"] else method


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
        engine, server_config, leader = _prepare(settings, hosts)
        run(
            engine,
            server_config,
            sock=sock,
            on_ready=lambda url: _announce(url, engine.model_name, server_config, started),
        )
        if leader is not None:
            leader.stop()


def prepare(settings: Mapping[str, Any]) -> tuple[AsyncLLMEngine, ServerConfig]:
    """The engine, its weights still to be loaded, and the settings of the HTTP side.

    Raises:
        ConfigError: A setting cannot be met.
        CheckpointError: The checkpoint cannot be had.
    """
    engine, server_config, _ = _prepare(settings, None)
    return engine, server_config


def _prepare(
    settings: Mapping[str, Any], hosts: Hosts | None
) -> tuple[AsyncLLMEngine, ServerConfig, Leader | None]:
    """What `prepare` makes, and who leads the other hosts."""
    from server.config import ServerConfig
    from server.sampling_defaults import log_sampling_defaults

    engine, model_type, defaults, leader = _make_engine(settings, hosts)
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
        model_type=model_type,
        ignores_unknown_fields=settings["UNKNOWN_FIELDS"] == "ignore",
        sampling_defaults=defaults,
        load_format=settings["LOAD_FORMAT"],
    )
    return engine, server_config, leader


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


def _open_model(settings: Mapping[str, Any]) -> tuple[Path, Checkpoint, PreTrainedTokenizerFast]:
    """Where the model is, its opened checkpoint and its tokenizer."""
    from checkpoints_conv.readers import open_checkpoint
    from rtpjax.tokenizer import load_tokenizer

    cache = settings["RTPJAX_CACHE"].expanduser()
    path = resolve_checkpoint(settings["CHECKPOINT_PATH"], cache, settings["LOAD_FORMAT"])
    _configure_jax(cache)
    checkpoint = open_checkpoint(path)
    checkpoint.config = with_model_type(checkpoint.config, settings["MODEL_TYPE"])
    return path, checkpoint, load_tokenizer(settings["TOKENIZER_PATH"] or path)


def _make_engine(
    settings: Mapping[str, Any], hosts: Hosts | None
) -> tuple[AsyncLLMEngine, str, dict[str, Any], Leader | None]:
    """The engine, its weights still to be loaded; what else is known of the model; who leads.

    The former are its type and its sampling defaults, the latter of the other hosts.
    """
    from rtpjax.distributed.leader import Leader
    from rtpjax.engine.async_engine import AsyncLLMEngine
    from rtpjax.engine.load import load_engine
    from rtpjax.tokenizer import eos_token_ids, read_generation_config
    from server.sampling_defaults import sampling_defaults

    engine_settings = _engine_settings(settings)
    path, checkpoint, tokenizer = _open_model(settings)
    end_token_ids = eos_token_ids(path, checkpoint.config, tokenizer)

    def load() -> LLMEngine:
        if leader is not None:
            leader.join()
        return load_engine(checkpoint, tokenizer, end_token_ids, engine_settings, leader=leader)

    engine = AsyncLLMEngine(load, tokenizer, settings["MODEL_NAME"] or _name_of(path))
    leader = None if hosts is None else Leader(hosts, settings["JOIN_TIMEOUT_S"], engine)
    uses_defaults = settings["GENERATION_CONFIG"] == "auto" and settings["LOAD_FORMAT"] == "auto"
    defaults = sampling_defaults(read_generation_config(path)) if uses_defaults else {}
    named = (settings["MODEL_TYPE"] or "").lower().removesuffix("forcausallm")
    return engine, named or checkpoint.config.get("model_type") or "", defaults, leader


def _name_of(path: Path) -> str:
    """What the API calls a model when MODEL_NAME does not say it."""
    from rtpjax.dummy_checkpoint import is_config_file, name_of

    return name_of(path) if is_config_file(path) else path.resolve().stem


def follow_leader(settings: Mapping[str, Any], hosts: Hosts) -> None:
    """Takes part in a mesh over many hosts until its leader stops.

    Raises:
        ConfigError: The leader cannot be met.
        CheckpointError: The checkpoint cannot be had.
    """
    from rtpjax.distributed.follower import follow
    from rtpjax.engine.load import load_runner

    engine_settings = _engine_settings(settings)
    _, checkpoint, tokenizer = _open_model(settings)
    follow(
        hosts,
        settings["JOIN_TIMEOUT_S"],
        lambda: load_runner(checkpoint, len(tokenizer), engine_settings),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the settings and serves; returns the exit status."""
    try:
        settings = read_settings(sys.argv[1:] if argv is None else argv, os.environ)
        configure_logging(settings)
        warn_not_yet(os.environ)
        hosts = resolve(settings, os.environ)
        if hosts is not None:
            check_mesh_size(hosts, settings["TP_SIZE"] * settings["DP_SIZE"])
        if hosts is None or hosts.is_leader:
            serve(settings, hosts)
        else:
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
