"""RTP-LLM's generate config: `extra_configs` of the chat API, `generate_config` of the raw one.

Its settings become the fields that the other APIs have. Where a body has both, the field at the top
wins.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Any

from pydantic import Field, model_validator

from rtpjax.errors import RequestError
from server import limits
from server.protocol.body import StrictModel, check_fields, describe, field_error
from server.protocol.field_classes import EXTRA_CONFIGS
from server.protocol.fields import REFUSE, FieldPolicy
from server.protocol.values import (
    BadTokens,
    Int32,
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
    TopK,
    TopP,
)

# Its name for a setting -> the field's name.
_FIELD_OF = {
    "max_new_tokens": "max_tokens",
    "gen_length": "max_tokens",
    "min_new_tokens": "min_tokens",
    "random_seed": "seed",
    "stop_words_str": "stop",
    "print_stop_words": "include_stop_str_in_output",
    "return_output_ids": "return_token_ids",
    "max_thinking_tokens": "thinking_budget",
}
# What its own clients may write as a list: one value per prompt of a batch.
_LISTABLE = (
    *("top_k", "top_p", "temperature", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "min_new_tokens", "no_repeat_ngram_size", "random_seed"),
)


class GenerateConfig(StrictModel):
    """The settings that are honoured."""

    others = EXTRA_CONFIGS

    max_new_tokens: TokenCount | None = None
    gen_length: TokenCount | None = None
    min_new_tokens: Int32 = 0
    do_sample: bool = True
    temperature: Temperature = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    random_seed: Seed | None = None
    num_beams: NumBeams = 1
    num_return_sequences: Int32 = 0
    stop_words_str: Stop = Field(default_factory=list)
    stop_words_list: StopWordsList = Field(default_factory=list)
    bad_words_list: Annotated[list[BadTokens], Field(max_length=limits.MAX_BAD_WORDS)] = Field(
        default_factory=list
    )
    no_repeat_ngram_size: NgramSize = 0
    timeout_ms: TimeoutMs = 0
    print_stop_words: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    return_output_ids: bool = False
    aux_info: bool = False
    force_disable_sp_run: bool = False
    response_format: Any = None
    json_format: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    max_thinking_tokens: Int32 | None = None
    thinking_budget: Int32 | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_single_values(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        lists = {name for name in _LISTABLE if isinstance(given.get(name), list)}
        for name in lists:
            if len(given[name]) != 1:
                raise field_error(name, "expected a number, or a list of one")
        return given | {name: given[name][0] for name in lists}

    def as_fields(self) -> dict[str, Any]:
        """The given settings under the names of the fields."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        fields = {_FIELD_OF.get(name, name): value for name, value in given.items()}
        if "num_return_sequences" in given:
            # 0 is one answer, too; the raw API then writes it without a list around it.
            count = fields.pop("num_return_sequences")
            fields |= {"n": count} if count else {}
        if not fields.pop("do_sample", True):
            fields["temperature"] = 0.0
        if fields.pop("json_format", False):
            fields.setdefault("response_format", {"type": "json_object"})
        return fields


def with_extra_configs(given: dict[str, Any], names: Container[str]) -> dict[str, Any]:
    """The fields of a body, with the settings of its `extra_configs` where they say nothing.

    Args:
        given: The fields.
        names: Those that the API has.
    """
    if "extra_configs" not in given:
        return given
    fields = {name: value for name, value in given.items() if name != "extra_configs"}
    config = config_fields(given["extra_configs"], "extra_configs")
    if "max_completion_tokens" in fields:
        config.pop("max_tokens", None)
    if "thinking_token_budget" in fields:
        config.pop("thinking_budget", None)
    if "chat_template_kwargs" not in names:  # no template is rendered
        config.pop("chat_template_kwargs", None)
    return config | fields


def config_fields(
    config: Any,
    where: str,
    model: type[GenerateConfig] = GenerateConfig,
    policy: FieldPolicy = REFUSE,
) -> dict[str, Any]:
    """A generate config as fields.

    Args:
        config: The config.
        where: The field it stands in.
        model: What checks it.
        policy: For unknown settings.

    Raises:
        RequestError: With `where` before the name of the setting.
    """
    if not isinstance(config, dict):
        raise field_error(where, f"expected an object, found {describe(config)}")
    try:
        return check_fields(config, model, policy).as_fields()
    except RequestError as error:
        param = f"{where}.{error.param}" if error.param else where
        raise RequestError(f"{where}.{error}", param=param, code=error.code) from error
