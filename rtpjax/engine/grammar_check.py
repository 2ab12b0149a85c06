"""Whether a grammar compiles, asked without a model's tokenizer.

The tokenizer here has the 256 bytes and an end. Grammars are about bytes, so one that compiles for
it compiles for every tokenizer, in a tenth of the time or less.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rtpjax.engine.grammar import check_size, check_start, to_llguidance
from rtpjax.engine.request import Grammar
from rtpjax.errors import RequestError


def schema_error(schema: dict[str, Any]) -> str | None:
    """Why a JSON schema cannot be compiled, or that no value fits it; None if all is well."""
    return grammar_error(Grammar("json_schema", json.dumps(schema)))


def grammar_error(grammar: Grammar) -> str | None:
    """Why a grammar cannot be compiled, or that no text fits it; None if all is well."""
    try:
        for part in (grammar, grammar.instead):
            if part is not None:
                check_size(part)
        tokenizer = _bytes()
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(tokenizer, to_llguidance(grammar, {}), log_level=0, limits=limits)
        if matcher.is_error():
            return matcher.get_error()
        check_start(grammar, tokenizer, matcher)
    except (RequestError, ValueError, KeyError, TypeError, RecursionError) as error:
        return str(error)
    return None


@cache
def _bytes() -> LLTokenizer:
    """A tokenizer of single bytes."""
    end = "<end>"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({text: i for i, text in enumerate([*letters, end])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([end])
    return LLTokenizer(backend.to_str(), eos_token=[len(letters)], slices=[])
