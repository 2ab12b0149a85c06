"""Shapes of real models, shared by tests, benchmarks and the checks of compiled code.

A shape is what one device computes: Qwen3-32B on 4 GPUs has a quarter of its heads here.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """Attention of one layer on one device.

    Attributes:
        name: The model, and over how many devices its heads are split.
        num_heads: Query heads (N).
        num_kv_heads: Heads of the cache (K).
        head_dim: H.
        window: Tokens that a token attends to, None for all.
        soft_cap: Bound of the scores.
        has_sinks: Whether each head has a sink.
        cache_dtype: Format of the cache; the quantized ones have scales per page and head.
    """

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    soft_cap: float | None = None
    has_sinks: bool = False
    cache_dtype: str = "bfloat16"

    @property
    def is_quantized(self) -> bool:
        return self.cache_dtype in ("int8", "float8_e4m3fn")


ATTENTION_SHAPES = (
    AttentionShape("SmolLM2-135M", 9, 3, 64),
    AttentionShape("Qwen2.5-0.5B", 14, 2, 64),
    AttentionShape("Llama-3.1-8B", 32, 8, 128),
    AttentionShape("Llama-3.1-8B int8 cache", 32, 8, 128, cache_dtype="int8"),
    AttentionShape("Llama-3.1-8B fp8 cache", 32, 8, 128, cache_dtype="float8_e4m3fn"),
    AttentionShape("Llama-3.1-8B float16", 32, 8, 128, cache_dtype="float16"),
    AttentionShape("Qwen2.5-7B", 28, 4, 128),
    AttentionShape("Qwen3-8B", 32, 8, 128),
    AttentionShape("Qwen3-32B tp 4", 16, 2, 128),
    AttentionShape("Qwen3-30B-A3B", 32, 4, 128),
    AttentionShape("Mistral-7B-v0.1", 32, 8, 128, window=4096),
    AttentionShape("Gemma-2-2B", 8, 4, 256, window=4096, soft_cap=50.0),
    AttentionShape("Gemma-2-2B int8 cache", 8, 4, 256, soft_cap=50.0, cache_dtype="int8"),
    AttentionShape("Gemma-3-1B", 4, 1, 256, window=512),
    AttentionShape("phi-2", 32, 32, 80),
    AttentionShape("Phi-3-mini", 32, 32, 96, window=2047),
    AttentionShape("gpt-oss-20b", 64, 8, 64, window=128, has_sinks=True),
    AttentionShape("gpt-oss-120b tp 4", 16, 2, 64, has_sinks=True),
)
