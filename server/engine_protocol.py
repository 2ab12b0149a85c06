"""The engine as the server sees it: how tokens are made stays behind it, and so does jax."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Protocol

from rtpjax.engine.request import EngineStats, GenerationRequest, RequestOutput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Engine(Protocol):
    """`rtpjax.engine.async_engine.AsyncLLMEngine`, or anything that behaves like it.

    `tokenizer`, `model_name`, `created` exist before `start()`; `max_model_len` and
    `end_token_ids` once it is ready.
    """

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast: ...
    @property
    def model_name(self) -> str: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def end_token_ids(self) -> frozenset[int]: ...
    @property
    def created(self) -> int: ...
    @property
    def is_ready(self) -> bool: ...
    @property
    def is_draining(self) -> bool: ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]: ...
    def stats(self) -> EngineStats: ...
    async def start(self) -> None: ...
    async def drain(self, timeout_s: float) -> None: ...
    async def stop(self) -> None: ...
