"""Settings of the engine. What an operator may leave open is "auto" (None), resolved here once."""

from __future__ import annotations

import dataclasses
import logging
from typing import Literal

import jax.numpy as jnp
import psutil

from pallas_kernels import paged_attention
from pallas_kernels.registry import Target
from rtpjax.engine import seats
from rtpjax.engine.cache_groups import CacheGroup, pages_for
from rtpjax.engine.cache_sizes import CacheSizes
from rtpjax.errors import ConfigError
from rtpjax.models import ModelConfig, Pages, Precision
from rtpjax.sharding import Split

logger = logging.getLogger(__name__)

ActType = Literal["FP32", "BF16", "FP16"]
KvCacheDtype = Literal["int8", "fp8"]
_CACHE_DTYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
_FP8_FROM = 89  # compute capability; 8.9 is Ada, 9.0 Hopper
MIB = 1 << 20
GIB = 1 << 30
# The part of what is left beside the cache that the state of running requests may take: on a GPU of
# reserved_bytes, on the CPU as much as this part of the cache, which leaves most memory alone.
_SEATS_PART = 4


@dataclasses.dataclass(frozen=True)
class DraftConfig:
    """How tokens are drafted by n-gram lookup (rtpjax.engine.drafts).

    Attributes:
        num_tokens: Most that a row has in a step.
        min_match, max_match: Tokens of context that must have been there before; the longest match
            counts.
    """

    num_tokens: int = 4
    min_match: int = 2
    max_match: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.min_match <= self.max_match:
            raise ConfigError(
                f"SP_MIN_TOKEN_MATCH is {self.min_match} and SP_MAX_TOKEN_MATCH {self.max_match}; "
                "set them to at least 1, and the first to at most the second."
            )
        if self.num_tokens < 1:
            raise ConfigError(f"GEN_NUM_PER_CYCLE is {self.num_tokens}; it must be at least 1.")


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """What the operator may set; None is "auto".

    Attributes:
        act_type: Compute format. Auto: BF16.
        max_model_len: Tokens of prompt and output together. Auto: what the model was trained for,
            or what fits.
        page_size: Tokens a cache page holds, a power of two. Auto: 32 on the CPU, 64 on a GPU.
        max_num_seqs: Requests in a step. Auto: 32 on the CPU, 256 on a GPU.
        max_num_batched_tokens: Tokens in a step. Auto: 512 on the CPU, 8192 on a GPU.
        max_num_waiting: Requests that may wait before new ones are refused with 429.
        kv_cache_bytes: Memory of the paged cache. Auto: on the CPU a sixteenth of the free memory,
            or two of the longest contexts, but at most a quarter and 4 GiB; on a GPU what is left
            beside the weights, less reserved_bytes.
        kv_cache_dtype: Format of cached keys and values; int8 and fp8 (e4m3) have a scale per page
            and kv head. Auto: as the activations.
        reserved_bytes: GPU memory left for temporaries and the state of running requests.
        use_prefix_cache: Whether shared prompt prefixes are computed once.
        tp_size: Devices that each layer is split over.
        dp_size: Groups of so many devices, each with requests and pages of its own.
        ep_size: Ways that experts are split in; divides tp_size.
        compile_cache_dir: Where compiled programs are kept between starts; None for nowhere.
        attention_implementation: A name from the registry of pallas_kernels.paged_attention. Auto:
            the platform's first one that supports the model.
        drafts: How tokens are drafted; None for not at all.
        quantization: What plain weights are quantized to while they are loaded, a key of
            rtpjax.models.quantization.METHODS. None: they stay as they are.
    """

    act_type: ActType | None = None
    max_model_len: int | None = None
    page_size: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_waiting: int = 4096
    kv_cache_bytes: int | None = None
    kv_cache_dtype: KvCacheDtype | None = None
    reserved_bytes: int = 2 * GIB
    use_prefix_cache: bool = True
    tp_size: int = 1
    dp_size: int = 1
    ep_size: int = 1
    compile_cache_dir: str | None = None
    attention_implementation: str | None = None
    drafts: DraftConfig | None = None
    quantization: str | None = None


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Resolved settings: nothing is open. Attributes are those of EngineSettings, and:

    precision: Number formats.
    cache_groups: A dp group's pages, by lifetime; the widest window, or none, comes first.
    attention_implementation: None where the registry chooses.

    Limits and pages are those of one dp group.
    """

    precision: Precision
    max_model_len: int
    page_size: int
    cache_groups: tuple[CacheGroup, ...]
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_waiting: int
    use_prefix_cache: bool
    tp_size: int
    dp_size: int = 1
    ep_size: int = 1
    attention_implementation: str | None = None
    drafts: DraftConfig | None = None

    @property
    def num_pages(self) -> int:
        """Pages of the group that needs most of a long context, page 0 (padding) included."""
        return self.cache_groups[0].num_pages

    @property
    def table_width(self) -> int:
        """Pages that the longest context takes."""
        return pages_for(self.max_model_len, self.page_size)


def precision_of(settings: EngineSettings, platform: str) -> Precision:
    """The number formats that the settings mean on a platform."""
    precision = Precision.of(settings.act_type or "BF16", platform)
    if settings.kv_cache_dtype is None:
        return precision
    return dataclasses.replace(precision, cache=_CACHE_DTYPES[settings.kv_cache_dtype])


def check_cache_dtype(settings: EngineSettings, target: Target) -> None:
    """Refuses a format of the cache that a GPU has no instructions for.

    Raises:
        ConfigError: It has none; says what to use instead.
    """
    capability = target.compute_capability
    if settings.kv_cache_dtype == "fp8" and target.platform == "gpu" and capability < _FP8_FROM:
        raise ConfigError(
            f"An fp8 cache needs compute capability {_FP8_FROM / 10} or later, and this GPU has "
            f"{capability / 10}. Use an int8 cache: it takes the same memory (INT8_KV_CACHE=1 in "
            "place of FP8_KV_CACHE)."
        )


def resolve(
    settings: EngineSettings,
    model: ModelConfig,
    specs: tuple[Pages, ...],
    *,
    platform: str,
    free_bytes: int | None = None,
) -> EngineConfig:
    """Settles every "auto", once, and says in the log what it became.

    Args:
        settings: What the operator set.
        model: The model's shape.
        specs: What its layers cache.
        platform: "cpu" or "gpu".
        free_bytes: Memory that cache and temporaries may share: free memory of one GPU once the
            weights are loaded; None measures the host's.

    Raises:
        ConfigError: A setting is out of range, or the context does not fit into memory.
    """
    is_cpu = platform == "cpu"
    _check_implementation(settings.attention_implementation, platform)
    if settings.drafts is not None and settings.kv_cache_dtype is not None:
        raise ConfigError(
            "Tokens cannot be drafted (SP_TYPE, SPECULATIVE_CONFIG) with a quantized cache: a "
            "rejected draft may have changed the scale of a page, and so the answer. Leave out one "
            "of the two."
        )
    precision = precision_of(settings, platform)
    page_size = _or(settings.page_size, 32 if is_cpu else 64)
    if page_size & (page_size - 1) or not 1 <= page_size <= 1024:
        raise ConfigError(
            f"SEQ_SIZE_PER_BLOCK is {page_size}; it must be a power of two from 1 to 1024."
        )
    max_num_seqs = _or(settings.max_num_seqs, 32 if is_cpu else 256)
    tokens = _or(settings.max_num_batched_tokens, 512 if is_cpu else 8192)
    _at_least("CONCURRENCY_LIMIT", max_num_seqs, 1)
    _at_least("MAX_BATCH_TOKENS_SIZE", tokens, 16)
    sizes = CacheSizes.of(specs, page_size, precision.cache, tokens)
    budget = settings.kv_cache_bytes
    if budget is None:
        split = Split.of(model, settings.tp_size)
        two_contexts = 2 * sizes.context_bytes(model.max_position_embeddings)
        budget = _cache_budget(settings, split, is_cpu, free_bytes, two_contexts)
    max_model_len = _max_model_len(settings, model, budget, sizes)
    if settings.kv_cache_bytes is None:
        # Seats take no memory of their own unless they are large: then the cache has less.
        seat_bytes = max_num_seqs * seats.seat_bytes(max_model_len, model.vocab_size)
        spare = (budget if is_cpu else settings.reserved_bytes) // _SEATS_PART
        if seat_bytes > spare:
            budget -= (seat_bytes - spare) * Split.of(model, settings.tp_size).kv_heads
            max_model_len = _max_model_len(settings, model, budget, sizes)
    _warn_of_length(settings, max_model_len, model.max_position_embeddings, budget)
    config = EngineConfig(
        precision=precision,
        max_model_len=max_model_len,
        page_size=page_size,
        cache_groups=sizes.split(budget, max_num_seqs, max_model_len),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=tokens,
        max_num_waiting=settings.max_num_waiting,
        use_prefix_cache=settings.use_prefix_cache,
        tp_size=settings.tp_size,
        attention_implementation=settings.attention_implementation,
        dp_size=settings.dp_size,
        ep_size=settings.ep_size,
        drafts=settings.drafts,
    )
    logger.info("Engine: %s", describe(config, sizes))
    return config


def _max_model_len(
    settings: EngineSettings,
    model: ModelConfig,
    budget: int,
    sizes: CacheSizes,
) -> int:
    """The longest context: what is asked for, or what the model and the cache allow."""
    longest = sizes.longest_context(budget)
    if longest < 2:
        least = sizes.context_bytes(2)
        raise ConfigError(
            f"The cache has {budget / MIB:.1f} MiB, which hold no context of 2 tokens and the page "
            f"for padding. Set KV_CACHE_MEM_MB to at least {-(-least // MIB)}, free memory, or set "
            "CONCURRENCY_LIMIT lower: each running request takes memory, too."
        )
    trained = model.max_position_embeddings
    max_model_len = _or(settings.max_model_len, min(trained, longest))
    _at_least("MAX_SEQ_LEN", max_model_len, 2)
    if max_model_len > longest:
        needed = sizes.context_bytes(max_model_len)
        raise ConfigError(
            f"max_model_len {max_model_len} does not fit: its cache takes {needed / MIB:.0f} MiB "
            f"and {budget / MIB:.0f} MiB are there. Set MAX_SEQ_LEN to at most {longest}, or "
            f"KV_CACHE_MEM_MB to at least {-(-needed // MIB)}."
        )
    return max_model_len


def _warn_of_length(
    settings: EngineSettings, max_model_len: int, trained: int, budget: int
) -> None:
    if settings.max_model_len is None and max_model_len < trained:
        logger.warning(
            "The context is cut from %d to %d tokens: that is what %.0f MiB of cache hold. "
            "KV_CACHE_MEM_MB sets more.", trained, max_model_len, budget / MIB,
        )  # fmt: skip
    if max_model_len > trained:
        logger.warning(
            "MAX_SEQ_LEN %d is more than the %d tokens that the model was trained for.",
            max_model_len, trained,
        )  # fmt: skip


def describe(config: EngineConfig, sizes: CacheSizes) -> str:
    """One line with everything that was resolved."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    p = config.precision
    fields["precision"] = "/".join(
        str(getattr(d, "__name__", d)) for d in (p.weights, p.activations, p.cache)
    )
    groups = fields.pop("cache_groups")
    each = (g.num_pages * size / MIB for g, size in zip(groups, sizes.page_bytes, strict=True))
    fields["num_pages"] = ",".join(
        f"{group.num_pages}" + (f"(window {group.window})" if group.window else "")
        for group in groups
    )
    fields["cache_mib"] = round(sum(each))
    return " ".join(f"{name}={value}" for name, value in fields.items())


def _or(value: int | None, auto: int) -> int:
    return auto if value is None else value


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}.")


def _check_implementation(name: str | None, platform: str) -> None:
    """Whether it can do this model's shapes is said when the steps are compiled."""
    known = paged_attention.OP.implementations
    usable = sorted(i.name for i in known.values() if platform in i.platforms)
    if name is not None and name not in usable:
        raise ConfigError(
            f"ATTENTION_IMPLEMENTATION is {name!r}; on this platform ({platform}) there are "
            f"{', '.join(usable)}."
        )


def _cache_budget(
    settings: EngineSettings,
    split: Split,
    is_cpu: bool,
    free_bytes: int | None,
    two_contexts: int,
) -> int:
    """Bytes of one dp group's cache, devices that keep the same heads counted once.

    On the CPU all of it is touched at the start, so by default it is not as large as it could be.
    """
    if is_cpu:
        free = free_host_bytes() if free_bytes is None else free_bytes
        # All virtual devices share the host's memory.
        num_copies = settings.dp_size * (split.tp_size // split.kv_heads)
        most = min(free // 4, 4 * GIB) // num_copies
        return min(most, max(free // 16 // num_copies, two_contexts))
    assert free_bytes is not None
    if free_bytes <= settings.reserved_bytes:
        raise ConfigError(
            f"{free_bytes / MIB:.0f} MiB of GPU memory are left beside the weights, and "
            f"{settings.reserved_bytes / MIB:.0f} MiB are reserved for temporaries. Set "
            "RESERVER_RUNTIME_MEM_MB lower, or split the model over more GPUs with TP_SIZE."
        )
    return gpu_cache_bytes(free_bytes, settings.reserved_bytes, split.kv_heads)


def gpu_cache_bytes(free_bytes: int, reserved_bytes: int, kv_ways: int) -> int:
    """Bytes of cache over the GPUs that keys and values are split over, of what is free on each.

    Each has as much room; those that keep the same heads are counted once. `rtpjax plan` computes
    with the same function, and says whether reserved_bytes hold the temporaries of the compiled
    steps.
    """
    return max(free_bytes - reserved_bytes, 0) * kv_ways


def free_host_bytes() -> int:
    """Memory of this machine that can still be had."""
    return psutil.virtual_memory().available
