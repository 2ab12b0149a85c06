"""The model that a server serves: from settings to its description, and to an engine.

Runs in the process that has the engine (rtpjax.engine.process), which may be the server's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtpjax.errors import CheckpointError, ConfigError
from rtpjax.logs import configure_logging

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from rtpjax.checkpoint import Checkpoint
    from rtpjax.config import DraftConfig, EngineSettings, KvCacheDtype
    from rtpjax.distributed.hosts import Hosts
    from rtpjax.engine.engine import LLMEngine
    from rtpjax.engine.loop import EngineLoop
    from rtpjax.engine.process_main import Opened

MIB = 1 << 20
_CONFIG_FILES = ("*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken")
_MODEL_FILES = (*_CONFIG_FILES, "*.safetensors")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server knows of its model before there is an engine.

    Attributes:
        tokenizer: Its tokenizer.
        name: What the API calls it.
        model_type: Of its config.json, or as MODEL_TYPE says.
        generation_config: The dict of its generation_config.json; empty where that does not count.
    """

    tokenizer: PreTrainedTokenizerFast
    name: str
    model_type: str
    generation_config: dict[str, Any]


def open_in_process(settings: Mapping[str, Any], hosts: Hosts | None) -> Opened:
    """What an engine's process begins with: see open_served."""
    configure_logging(settings)
    return open_served(settings, hosts)


def open_served(settings: Mapping[str, Any], hosts: Hosts | None) -> Opened:
    """Finds the model and describes it; fetches what is not there.

    Args:
        settings: By name.
        hosts: The processes of a mesh over many hosts; this one is their leader.

    Raises:
        ConfigError: A setting cannot be met.
        CheckpointError: The checkpoint cannot be had.
    """
    from rtpjax.engine.process_main import Opened
    from rtpjax.tokenizer import eos_token_ids, read_generation_config

    resolved = engine_settings(settings)
    path, checkpoint, tokenizer = _open_model(settings)
    end_token_ids = eos_token_ids(path, checkpoint.config, tokenizer)
    uses_defaults = settings["GENERATION_CONFIG"] == "auto" and settings["LOAD_FORMAT"] == "auto"
    named = (settings["MODEL_TYPE"] or "").lower().removesuffix("forcausallm")

    def load(loop: EngineLoop) -> LLMEngine:
        from rtpjax.engine.load import load_engine

        leader = None
        if hosts is not None:
            from rtpjax.distributed.leader import Leader

            leader = Leader(hosts, settings["JOIN_TIMEOUT_S"], loop)
            leader.join()
            loop.at_end(leader.stop)
        return load_engine(checkpoint, tokenizer, end_token_ids, resolved, leader=leader)

    model = ServedModel(
        tokenizer,
        settings["MODEL_NAME"] or _name_of(path),
        named or checkpoint.config.get("model_type") or "",
        read_generation_config(path) if uses_defaults else {},
    )
    return Opened(model, load)


def follow_leader(settings: Mapping[str, Any], hosts: Hosts) -> None:
    """Takes part in a mesh over many hosts until its leader stops.

    Raises:
        ConfigError: The leader cannot be met.
        CheckpointError: The checkpoint cannot be had.
    """
    from rtpjax.distributed.follower import follow
    from rtpjax.engine.load import load_runner

    resolved = engine_settings(settings)
    _, checkpoint, tokenizer = _open_model(settings)
    follow(
        hosts,
        settings["JOIN_TIMEOUT_S"],
        lambda: load_runner(checkpoint, len(tokenizer), resolved),
    )


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


def _configure_jax(cache: Path) -> None:
    """Compiled programs are kept, whatever their size."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def engine_settings(settings: Mapping[str, Any]) -> EngineSettings:
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
        drafts=draft_config(settings),
        quantization=quantization_of(settings),
    )


def draft_config(settings: Mapping[str, Any]) -> DraftConfig | None:
    """How tokens are drafted by SP_TYPE and what goes with it, or by SPECULATIVE_CONFIG."""
    from rtpjax.config import DraftConfig

    given = settings["SPECULATIVE_CONFIG"]
    if settings["SP_TYPE"] is None and given is None:
        return None
    every = {**settings, **(given or {})}
    least, most = every["SP_MIN_TOKEN_MATCH"], every["SP_MAX_TOKEN_MATCH"]
    return DraftConfig(every["GEN_NUM_PER_CYCLE"], least, max(least, 2) if most is None else most)


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


def _name_of(path: Path) -> str:
    """What the API calls a model when MODEL_NAME does not say it."""
    from rtpjax.dummy_checkpoint import is_config_file, name_of

    return name_of(path) if is_config_file(path) else path.resolve().stem
