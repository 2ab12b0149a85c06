"""The fields that say how to sample and when to stop, shared by the chat and completions APIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Annotated, Any

from pydantic import Field, model_validator

from rtpjax.engine.request import SamplingParams
from server import limits
from server.protocol.body import StrictModel, field_error
from server.protocol.generate_config import GenerateConfig, with_extra_configs
from server.protocol.values import (
    BadTokens,
    BadWord,
    Int32,
    LogitBias,
    NgramSize,
    NumBeams,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stop,
    StopWordsList,
    Temperature,
    TimeoutMs,
    TokenCount,
    TokenId,
    TopK,
    TopP,
    Unit,
)

# 0 keeps the most likely token, as any value below its probability does.
_LEAST_TOP_P = 1e-9
# RTP-LLM's default, kept for its users; OpenAI's is 1.
DEFAULT_TEMPERATURE = 0.7


_NOT_WITH_BEAMS = (
    *("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("bad_words", "bad_words_list", "allowed_token_ids", "prompt_logprobs"),
    *("no_repeat_ngram_size", "timeout_ms"),
)


class StreamOptions(StrictModel):
    """What a stream carries besides the answer."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False  # padding against traffic analysis; the text is the same


class SamplingFields(StrictModel):
    """Fields with the same meaning in every generating route."""

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=limits.MAX_INT32)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: TokenCount | None = None
    min_tokens: Int32 = 0
    temperature: Temperature = DEFAULT_TEMPERATURE
    top_p: TopP = 1.0
    top_k: TopK = 0
    min_p: Unit = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    num_beams: NumBeams = 1
    seed: Seed | None = None
    logit_bias: LogitBias = Field(default_factory=dict)
    stop: Stop = Field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=limits.MAX_STOP_TOKEN_IDS)] = Field(
        default_factory=list
    )
    stop_words_list: StopWordsList = Field(default_factory=list)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    bad_words: Annotated[list[BadWord], Field(max_length=limits.MAX_BAD_WORDS)] = Field(
        default_factory=list
    )
    bad_words_list: Annotated[list[BadTokens], Field(max_length=limits.MAX_BAD_WORDS)] = Field(
        default_factory=list
    )
    allowed_token_ids: (
        Annotated[list[TokenId], Field(min_length=1, max_length=limits.MAX_ALLOWED_TOKEN_IDS)]
        | None
    ) = None
    no_repeat_ngram_size: NgramSize = 0
    timeout_ms: TimeoutMs = 0
    prompt_logprobs: Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS)] | None = None
    return_token_ids: bool = False
    aux_info: bool = False
    force_disable_sp_run: bool = False
    extra_configs: GenerateConfig | None = None  # taken apart before the others are checked
    cache_salt: Annotated[str, Field(max_length=limits.MAX_CACHE_SALT_CHARS)] = ""
    priority: Annotated[int, Field(ge=-limits.MAX_INT32, le=limits.MAX_INT32)] = 0

    @model_validator(mode="before")
    @classmethod
    def _merge_extra_configs(cls, given: Any) -> Any:
        return with_extra_configs(given, cls.model_fields) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "only allowed when stream is true")
        return self

    @model_validator(mode="after")
    def _beams_alone(self) -> SamplingFields:
        """Beams are searched by the model's own probabilities."""
        if self.num_beams == 1:
            return self
        if self.n > self.num_beams:
            raise field_error("n", f"{self.n} is more than num_beams, {self.num_beams}")
        for name in _NOT_WITH_BEAMS:
            field = type(self).model_fields[name]
            if getattr(self, name) != field.get_default(call_default_factory=True):
                raise field_error(name, "not supported together with num_beams")
        return self

    def take_defaults(self, defaults: Mapping[str, Any]) -> None:
        """Takes defaults for what the caller does not say; beams keep to the model's own."""
        for name, value in defaults.items():
            is_used = self.num_beams == 1 or name not in _NOT_WITH_BEAMS
            if is_used and name not in self.model_fields_set:
                setattr(self, name, value)

    @property
    def include_usage(self) -> bool:
        """Whether a stream's last chunk has the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def has_usage_in_chunks(self) -> bool:
        """Whether all other chunks have it, too, as far as it is known."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    def sampling_params(
        self,
        choice: int,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        vocab_size: int,
        bad_words: Sequence[tuple[int, ...]] = (),
    ) -> SamplingParams:
        """The engine's parameters for one of the `n` choices.

        Args:
            choice: 0 to n-1; a given seed grows by it, or all choices would be the same.
            max_tokens: Most tokens to generate; None means what the context allows.
            logprobs: As in SamplingParams.
            vocab_size: Token ids must be below it.
            bad_words: Token sequences of the field of that name.
        """
        _check_ids(self.logit_bias, "logit_bias", vocab_size)
        _check_ids(self.stop_token_ids, "stop_token_ids", vocab_size)
        _check_ids(chain.from_iterable(self.stop_words_list), "stop_words_list", vocab_size)
        _check_ids(self.allowed_token_ids or (), "allowed_token_ids", vocab_size)
        _check_ids(chain.from_iterable(self.bad_words_list), "bad_words_list", vocab_size)
        if max_tokens is not None and self.min_tokens > max_tokens:
            reason = f"{self.min_tokens} is more than max_tokens, {max_tokens}"
            raise field_error("min_tokens", reason)
        singles = (ids for ids in self.stop_words_list if len(ids) == 1)
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),  # vLLM's -1 is "all", too
            top_p=max(self.top_p, _LEAST_TOP_P),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed is None else (self.seed + choice) % 2**63,
            logit_bias=tuple(self.logit_bias.items()),
            stop=tuple(self.stop),
            stop_token_ids=(*self.stop_token_ids, *(ids[0] for ids in singles)),
            stop_sequences=tuple(tuple(ids) for ids in self.stop_words_list if len(ids) > 1),
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            ignore_eos=self.ignore_eos,
            include_stop_str_in_output=self.include_stop_str_in_output,
            skip_special_tokens=self.skip_special_tokens,
            logprobs=logprobs,
            bad_words=(*bad_words, *map(tuple, self.bad_words_list)),
            prompt_logprobs=self.prompt_logprobs,
            allowed_token_ids=tuple(dict.fromkeys(self.allowed_token_ids or ())),
        )


def _check_ids(ids: Any, name: str, vocab_size: int) -> None:
    for token_id in ids:
        if token_id >= vocab_size:
            reason = f"token id {token_id} is outside the vocabulary of {vocab_size}"
            raise field_error(name, reason)
