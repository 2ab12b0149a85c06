"""Body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from server import limits
from server.protocol.body import describe, field_error
from server.protocol.field_classes import COMPLETIONS
from server.protocol.form import FormFields
from server.protocol.values import TokenCount

# OpenAI's default; without one, a caller who forgets it would fill the whole context.
DEFAULT_MAX_TOKENS = 16

Prompt = str | list[int]


class CompletionRequest(FormFields):
    """What a caller of the completions API may send."""

    others = COMPLETIONS

    prompt: Any
    max_tokens: TokenCount | None = DEFAULT_MAX_TOKENS
    add_special_tokens: bool = True
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=limits.MAX_LEGACY_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=limits.MAX_INT32)] | None = None

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise field_error("best_of", "not supported unless it equals n")
        if self.num_beams > 1 and self.scores_echo:
            raise field_error("echo", "not supported together with logprobs and num_beams")
        self.prompt = _prompts(self.prompt)
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """What was asked for, else enough for what must be there."""
        if "max_tokens" in self.model_fields_set:
            return self.max_tokens
        return max(DEFAULT_MAX_TOKENS, self.min_tokens)

    @property
    def scores_echo(self) -> bool:
        """Whether the echoed prompt has log-probabilities, too."""
        return self.echo and self.logprobs is not None

    @property
    def prompts(self) -> list[Prompt]:
        return self.prompt


def _prompts(value: Any) -> list[Prompt]:
    """A string, strings, token ids, or lists of token ids -> a list of prompts."""
    if isinstance(value, str) or _is_token_ids(value):
        return [value]
    if not isinstance(value, list) or not value:
        expected = "expected a string, token ids, or a list of those"
        raise field_error("prompt", f"{expected}, found {describe(value)}")
    if len(value) > limits.MAX_PROMPTS:
        raise field_error("prompt", f"at most {limits.MAX_PROMPTS} prompts, found {len(value)}")
    for index, item in enumerate(value):
        if not (isinstance(item, str) or _is_token_ids(item)):
            expected = "expected a string or a list of token ids"
            raise field_error(f"prompt[{index}]", f"{expected}, found {describe(item)}")
    return value


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(x) is int for x in value)
