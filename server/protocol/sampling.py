"""The fields that say how to sample and when to stop, shared by the chat and completions APIs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from rtpjax.engine.request import SamplingParams
from server import limits
from server.protocol.body import StrictModel, describe, field_error

# RTP-LLM's default, kept for its users; OpenAI's is 1.
DEFAULT_TEMPERATURE = 0.7

Unit = Annotated[float, Field(ge=0, le=1)]
Int32 = Annotated[int, Field(ge=0, le=limits.MAX_INT32)]
TokenCount = Annotated[int, Field(ge=1, le=limits.MAX_INT32)]
TokenId = Annotated[int, Field(ge=0, le=limits.MAX_INT32)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _int_keys(value: Any) -> Any:
    """JSON has string keys only, so `logit_bias` spells token ids as strings."""
    if not isinstance(value, dict):
        return value
    for key in value:
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10):
            raise ValueError(f"expected token ids as keys, found {describe(key)}")
    return {int(key): bias for key, bias in value.items()}


StopString = Annotated[str, Field(min_length=1, max_length=limits.MAX_STOP_CHARS)]
Stop = Annotated[
    list[StopString], BeforeValidator(_as_list), Field(max_length=limits.MAX_STOP_STRINGS)
]
LogitBias = Annotated[
    dict[int, Annotated[float, Field(ge=-100, le=100)]],
    BeforeValidator(_int_keys),
    Field(max_length=limits.MAX_LOGIT_BIAS),
]


class StreamOptions(StrictModel):
    """What a stream carries besides the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against traffic analysis; the text is the same


class SamplingFields(StrictModel):
    """Fields with the same meaning in every generating route."""

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=limits.MAX_INT32)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: TokenCount | None = None
    min_tokens: Int32 = 0
    temperature: Annotated[float, Field(ge=0, le=2)] = DEFAULT_TEMPERATURE
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=limits.MAX_INT32)] = 0
    min_p: Unit = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    seed: Annotated[int, Field(ge=-limits.MAX_INT64 - 1, le=limits.MAX_INT64)] | None = None
    logit_bias: LogitBias = Field(default_factory=dict)
    stop: Stop = Field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=limits.MAX_STOP_TOKEN_IDS)] = Field(
        default_factory=list
    )
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    cache_salt: Annotated[str, Field(max_length=limits.MAX_CACHE_SALT_CHARS)] = ""
    priority: Annotated[int, Field(ge=-limits.MAX_INT32, le=limits.MAX_INT32)] = 0

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "only allowed when stream is true")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling_params(
        self, choice: int, *, max_tokens: int | None, logprobs: int | None, vocab_size: int
    ) -> SamplingParams:
        """The engine's parameters for one of the `n` choices.

        Args:
            choice: 0 to n-1; a given seed grows by it, or all choices would be the same.
            max_tokens: Most tokens to generate; None means what the context allows.
            logprobs: As in SamplingParams.
            vocab_size: Token ids must be below it.
        """
        _check_ids(self.logit_bias, "logit_bias", vocab_size)
        _check_ids(self.stop_token_ids, "stop_token_ids", vocab_size)
        if max_tokens is not None and self.min_tokens > max_tokens:
            reason = f"{self.min_tokens} is more than max_tokens, {max_tokens}"
            raise field_error("min_tokens", reason)
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),  # vLLM's -1 is "all", too
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed is None else (self.seed + choice) % 2**63,
            logit_bias=tuple(self.logit_bias.items()),
            stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            include_stop_str_in_output=self.include_stop_str_in_output,
            skip_special_tokens=self.skip_special_tokens,
            logprobs=logprobs,
        )


def _check_ids(ids: Any, name: str, vocab_size: int) -> None:
    for token_id in ids:
        if token_id >= vocab_size:
            reason = f"token id {token_id} is outside the vocabulary of {vocab_size}"
            raise field_error(name, reason)
