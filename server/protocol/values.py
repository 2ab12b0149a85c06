"""Values that several request bodies have, with their ranges."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from server import limits
from server.protocol.body import describe

Unit = Annotated[float, Field(ge=0, le=1)]
Int32 = Annotated[int, Field(ge=0, le=limits.MAX_INT32)]
TokenCount = Annotated[int, Field(ge=1, le=limits.MAX_INT32)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(ge=0, le=1)]
TopK = Annotated[int, Field(ge=-1, le=limits.MAX_INT32)]  # vLLM's -1 is "all", as 0 is
RepetitionPenalty = Annotated[float, Field(gt=0, le=10)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
NumBeams = Annotated[int, Field(ge=1, le=limits.MAX_BEAMS)]
Seed = Annotated[int, Field(ge=-limits.MAX_INT64 - 1, le=limits.MAX_INT64)]
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


BadWord = Annotated[str, Field(min_length=1, max_length=limits.MAX_STOP_CHARS)]
StopTokens = Annotated[list[TokenId], Field(min_length=1, max_length=limits.MAX_STOP_WORD_TOKENS)]
StopWordsList = Annotated[list[StopTokens], Field(max_length=limits.MAX_STOP_TOKEN_IDS)]
NgramSize = Annotated[int, Field(ge=0, le=limits.MAX_NGRAM_TOKENS)]
TimeoutMs = Annotated[int, Field(ge=-1, le=limits.MAX_INT32)]  # 0 and -1 are no limit
BadTokens = Annotated[list[TokenId], Field(min_length=1, max_length=limits.MAX_BAD_WORD_TOKENS)]
