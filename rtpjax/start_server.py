"""Starts the server: python -m rtpjax.start_server.

Every setting is an environment variable and a flag of the same name in lower case; a flag wins. The names are those
of RTP-LLM. This is the only place that reads the environment for the server.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rtpjax.errors import CheckpointError, ConfigError

logger = logging.getLogger("rtpjax")

MIB = 1 << 20


def _switch(text: str) -> bool:
    """0 or 1, and the words people write for them."""
    values = {"1": True, "true": True, "yes": True, "on": True}
    values |= {"0": False, "false": False, "no": False, "off": False, "": False}
    if text.lower() not in values:
        raise ValueError("expected 0 or 1")
    return values[text.lower()]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("expected a whole number of at least 1")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError("expected a port from 0 to 65535")
    return value


def _act_type(text: str) -> str:
    names = {"FP32": "FP32", "BF16": "BF16", "FP16": "FP16"}
    if text.upper() not in names:
        raise ValueError("expected FP32, BF16 or FP16")
    return text.upper()


def _log_level(text: str) -> str:
    if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError("expected DEBUG, INFO, WARNING or ERROR")
    return text.upper()


def _keys(text: str) -> tuple[str, ...]:
    return tuple(key.strip() for key in text.split(",") if key.strip())


@dataclasses.dataclass(frozen=True)
class Setting:
    """One thing that an operator can set.

    Attributes:
        name: The environment variable; the flag is its lower case.
        parse: Text to value; raises ValueError.
        default: Its value when it is not set.
        help: For --help.
    """

    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str


SETTINGS = (
    Setting("CHECKPOINT_PATH", str, None,
            "folder in Hugging Face layout, folder that rtpjax converted, .gguf file, or hub id "
            "(default: the embedded SmolLM2-135M-Instruct)"),
    Setting("TOKENIZER_PATH", str, None, "folder or .gguf file with the tokenizer (default: CHECKPOINT_PATH)"),
    Setting("MODEL_TYPE", str, None, "architecture or model type, when config.json does not say it"),
    Setting("MODEL_NAME", str, None, "what the API calls the model (default: the checkpoint's name)"),
    Setting("START_HOST", str, "0.0.0.0", "address to listen on"),
    Setting("START_PORT", _port, 8088, "port to listen on"),
    Setting("ACT_TYPE", _act_type, None, "compute format: FP32, BF16 or FP16 (default: BF16)"),
    Setting("MAX_SEQ_LEN", _positive, None, "tokens of prompt and output together (default: the model's own)"),
    Setting("SEQ_SIZE_PER_BLOCK", _positive, None, "tokens a cache page holds, a power of two"),
    Setting("KV_CACHE_MEM_MB", _positive, None, "memory of the paged cache (default: by free memory)"),
    Setting("RESERVER_RUNTIME_MEM_MB", _positive, 2048, "GPU memory left for temporaries"),
    Setting("REUSE_CACHE", _switch, True, "compute shared prompt prefixes once"),
    Setting("CONCURRENCY_LIMIT", _positive, None, "requests that run at once; further ones wait"),
    Setting("QUEUE_LIMIT", _positive, 4096, "requests that may wait; further ones get a 429"),
    Setting("MAX_BATCH_TOKENS_SIZE", _positive, None, "tokens computed in one step"),
    Setting("TP_SIZE", _positive, 1, "devices that each layer is split over"),
    Setting("API_KEYS", _keys, (), "comma-separated keys that callers must send one of (default: any key)"),
    Setting("MAX_BODY_MB", _positive, 16, "a larger request body gets a 413"),
    Setting("ALLOW_USER_TEMPLATE", _switch, False, "let a request bring its own chat template"),
    Setting("DRAIN_TIMEOUT_S", _positive, 30, "after SIGTERM, time for running requests to end"),
    Setting("LOG_LEVEL", _log_level, "INFO", "DEBUG, INFO, WARNING or ERROR"),
    Setting("FT_SERVER_TEST", _switch, False, "log to the console too when LOG_FILE is set"),
    Setting("LOG_FILE", str, None, "log to this file in place of the console"),
    Setting("RTPJAX_CACHE", Path, Path("~/.cache/rtpjax"), "where models and compiled programs are kept"),
)  # fmt: skip

# RTP-LLM's settings that are not built yet: named at start-up, so that nobody believes they work.
NOT_YET = (
    "DP_SIZE", "EP_SIZE", "WORLD_SIZE", "WORLD_RANK", "LOCAL_WORLD_SIZE", "QUANTIZATION", "INT8_MODE",
    "INT8_KV_CACHE", "FP8_KV_CACHE", "LORA_INFO", "SP_TYPE", "SP_CHECKPOINT_PATH", "GEN_NUM_PER_CIRCLE",
    "STOP_WORDS_STR", "STOP_WORDS_LIST", "THINK_MODE", "THINK_START_TAG", "THINK_END_TAG",
)  # fmt: skip
_HARMLESS = ("", "0", "1", "false", "none")  # values that ask for what happens anyway


def read_settings(argv: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """All settings by name: from a flag, else the environment, else the default.

    Raises:
        ConfigError: A value cannot be used.
        SystemExit: A flag is unknown, or --help.
    """
    parser = argparse.ArgumentParser(
        prog="rtpjax serve",
        description="Serves a model over the OpenAI API. Each flag is also an environment variable "
        "(--start_port and START_PORT); a flag wins.",
    )
    for setting in SETTINGS:
        flag = f"--{setting.name.lower()}"
        names = dict.fromkeys((flag, flag.replace("_", "-").replace("--", "--", 1)))
        parser.add_argument(*names, dest=setting.name, metavar="X", help=setting.help)
    flags = vars(parser.parse_args(list(argv)))
    values = {}
    for setting in SETTINGS:
        text = flags[setting.name]
        text = environment.get(setting.name) if text is None else text
        try:
            values[setting.name] = setting.default if not text else setting.parse(text)
        except ValueError as error:
            raise ConfigError(f"{setting.name} is {text!r}: {error}.") from error
    return values


def warn_not_yet(environment: Mapping[str, str]) -> None:
    """Names the settings of RTP-LLM that are set and have no effect here."""
    for name in NOT_YET:
        value = environment.get(name, "")
        if value.lower() not in _HARMLESS:
            logger.warning("%s=%s has no effect: rtpjax does not support it yet.", name, value)


def resolve_checkpoint(named: str | None, cache: Path) -> Path:
    """The folder or file that CHECKPOINT_PATH means; fetches what is not there.

    Raises:
        CheckpointError: It is neither there nor to be had.
    """
    if named is None:
        from checkpoints_conv.default_model import ensure_default_model

        return ensure_default_model(cache)
    path = Path(named).expanduser()
    if path.exists():
        return path
    if named.count("/") != 1 or named.startswith((".", "/", "~")):
        raise CheckpointError(f"CHECKPOINT_PATH is {named}: no such file or folder.")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.tiktoken"]
    try:
        folder = huggingface_hub.snapshot_download(
            named, allow_patterns=patterns, cache_dir=cache / "hub"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"CHECKPOINT_PATH is {named}: no such folder here, and it cannot be fetched as a hub id "
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


def _configure_logging(settings: Mapping[str, Any]) -> None:
    handlers: list[logging.Handler] = []
    if settings["LOG_FILE"]:
        handlers.append(logging.FileHandler(settings["LOG_FILE"]))
    if not handlers or settings["FT_SERVER_TEST"]:
        handlers.append(logging.StreamHandler())
    logging.basicConfig(
        level=settings["LOG_LEVEL"],
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=handlers,
        force=True,
    )
    for name in ("jax", "absl", "httpx", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _configure_jax(cache: Path) -> None:
    """Compiled programs are kept, whatever their size."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _engine_settings(settings: Mapping[str, Any]) -> Any:
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
        reserved_bytes=settings["RESERVER_RUNTIME_MEM_MB"] * MIB,
        use_prefix_cache=settings["REUSE_CACHE"],
        tp_size=settings["TP_SIZE"],
    )


def _announce(url: str, model_name: str, started: float) -> None:
    """The ready line, with something to paste."""
    print(
        f"\nrtpjax is ready: {model_name} at {url} (after {time.perf_counter() - started:.1f} s). Try:\n\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        """    -d '{"messages": [{"role": "user", "content": "Who are you?"}]}'\n""",
        flush=True,
    )


def serve(settings: Mapping[str, Any]) -> None:
    """Runs the server until SIGTERM or SIGINT.

    Raises:
        ConfigError: The port is in use, or a setting cannot be met.
        CheckpointError: The checkpoint cannot be had, or does not fit its model.
    """
    started = time.perf_counter()
    from server.config import ServerConfig
    from server.lifecycle import bind, run

    server_config = ServerConfig(
        host=settings["START_HOST"],
        port=settings["START_PORT"],
        api_keys=settings["API_KEYS"],
        max_body_bytes=settings["MAX_BODY_MB"] * MIB,
        drain_timeout_s=settings["DRAIN_TIMEOUT_S"],
        allow_user_template=settings["ALLOW_USER_TEMPLATE"],
    )
    sock = bind(server_config.host, server_config.port)  # before anything that takes long
    cache = settings["RTPJAX_CACHE"].expanduser()
    path = resolve_checkpoint(settings["CHECKPOINT_PATH"], cache)

    from checkpoints_conv.readers import open_checkpoint
    from rtpjax.engine.async_engine import AsyncLLMEngine
    from rtpjax.engine.load import load_engine
    from rtpjax.tokenizer import eos_token_ids, load_tokenizer

    _configure_jax(cache)
    checkpoint = open_checkpoint(path)
    checkpoint.config = with_model_type(checkpoint.config, settings["MODEL_TYPE"])
    tokenizer = load_tokenizer(settings["TOKENIZER_PATH"] or path)
    end_token_ids = eos_token_ids(path, checkpoint.config, tokenizer)
    model_name = settings["MODEL_NAME"] or path.resolve().stem
    engine = AsyncLLMEngine(
        lambda: load_engine(checkpoint, tokenizer, end_token_ids, _engine_settings(settings)),
        tokenizer,
        model_name,
    )
    run(engine, server_config, sock=sock, on_ready=lambda url: _announce(url, model_name, started))


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the settings and serves; returns the exit status."""
    try:
        settings = read_settings(sys.argv[1:] if argv is None else argv, os.environ)
        _configure_logging(settings)
        warn_not_yet(os.environ)
        serve(settings)
    except (ConfigError, CheckpointError) as error:
        print(f"rtpjax cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
