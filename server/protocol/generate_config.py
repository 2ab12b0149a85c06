"""RTP-LLM's generate config: `extra_configs` of the chat API, `generate_config` of the raw one.

Its settings become the fields that the other APIs have. Where a body has both, the field at the top
wins.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from rtpjax.errors import RequestError
from server import limits
from server.protocol.body import StrictModel, check_fields, describe, field_error
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


class GenerateConfig(StrictModel):
    """The settings that are honoured; what is not here is refused."""

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
    response_format: Any = None
    max_thinking_tokens: Int32 | None = None
    thinking_budget: Int32 | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_seed(cls, given: Any) -> Any:
        # Written as a list of one by RTP-LLM's own clients.
        if isinstance(given, dict) and isinstance(given.get("random_seed"), list):
            if len(given["random_seed"]) != 1:
                raise field_error("random_seed", "expected a number, or a list of one")
            return given | {"random_seed": given["random_seed"][0]}
        return given

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
        return fields


def with_extra_configs(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a body, with the settings of its `extra_configs` where they say nothing."""
    if "extra_configs" not in given:
        return given
    fields = {name: value for name, value in given.items() if name != "extra_configs"}
    config = config_fields(given["extra_configs"], "extra_configs")
    if "max_completion_tokens" in fields:
        config.pop("max_tokens", None)
    return config | fields


def config_fields(
    config: Any, where: str, model: type[GenerateConfig] = GenerateConfig
) -> dict[str, Any]:
    """A generate config as fields.

    Raises:
        RequestError: With `where` before the name of the setting.
    """
    if not isinstance(config, dict):
        raise field_error(where, f"expected an object, found {describe(config)}")
    try:
        return check_fields(config, model).as_fields()
    except RequestError as error:
        param = f"{where}.{error.param}" if error.param else where
        raise RequestError(f"{where}.{error}", param=param, code=error.code) from error
