"""What the engine refuses before it takes a request in, for every API and for Python callers.

RANGES, TEXTS and TOKENS say what the fields of SamplingParams and GenerationRequest may be; the
server's own limits (server/limits.py) lie within them.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

import numpy as np

from rtpjax.engine.limits import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_NGRAM_TOKENS,
)
from rtpjax.engine.request import GenerationRequest, Grammar, ReasoningLimit, SamplingParams
from rtpjax.errors import RequestError

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
# Log-probabilities of one prompt, its tokens times the likeliest ones and the token itself. They
# are kept until the prompt is computed, and then written in one piece.
MAX_PROMPT_SCORES = 1 << 18


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers that a field may have.

    Attributes:
        low, high: Bounds.
        is_whole: No fractions.
        is_open: The lower bound itself is not allowed.
        is_optional: None is allowed, too.
    """

    low: float
    high: float
    is_whole: bool = False
    is_open: bool = False
    is_optional: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value is in it; NaN is in none."""
        if value is None:
            return self.is_optional
        kind: Any = Integral if self.is_whole else Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        return (self.low < value if self.is_open else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low = f"more than {self.low:g}" if self.is_open else f"at least {_written(self.low)}"
        kind = "a whole number of " if self.is_whole else "a number of "
        return f"{kind}{low} and at most {_written(self.high)}"


def _written(bound: float) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts that a field may have.

    Attributes:
        most: How many.
        most_chars: Of each.
    """

    most: int
    most_chars: int


@dataclass(frozen=True, slots=True)
class TokenLists:
    """Token ids that a field may have.

    Attributes:
        most: How many, or how many sequences of them.
        most_tokens: Of each sequence; 0 where the field has single tokens.
    """

    most: int
    most_tokens: int = 0


RANGES = {
    "max_tokens": Range(1, MAX_INT32, is_whole=True, is_optional=True),
    "min_tokens": Range(0, MAX_INT32, is_whole=True),
    "temperature": Range(0, 2),
    "top_k": Range(0, MAX_INT32, is_whole=True),
    "top_p": Range(0, 1, is_open=True),
    "min_p": Range(0, 1),
    "repetition_penalty": Range(0, 10, is_open=True),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "seed": Range(-MAX_INT64 - 1, MAX_INT64, is_whole=True, is_optional=True),
    "logprobs": Range(0, MAX_LOGPROBS, is_whole=True, is_optional=True),
    "prompt_logprobs": Range(0, MAX_LOGPROBS, is_whole=True, is_optional=True),
    "no_repeat_ngram_size": Range(0, MAX_NGRAM_TOKENS, is_whole=True),
    "priority": Range(-MAX_INT32, MAX_INT32, is_whole=True),
    "timeout_s": Range(0, MAX_INT32, is_optional=True),
    "arrived_s": Range(-MAX_INT64, MAX_INT64),
}
BIAS = Range(-100, 100)
# More than a caller may send: what marks the end of a call is added to it.
TEXTS = {"stop": Texts(64, 1024)}
CACHE_SALT = Texts(1, 256)
TOKENS = {
    "stop_token_ids": TokenLists(MAX_BIASES),
    "stop_sequences": TokenLists(128, 64),
    "bad_words": TokenLists(MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS),
    "allowed_token_ids": TokenLists(MAX_BIASES),
}
SWITCHES = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "use_drafts")
_GRAMMAR_KINDS = get_args(get_type_hints(Grammar)["kind"])


def check_request(
    request: GenerationRequest,
    max_model_len: int,
    num_tokens: int,
    end_token_ids: Collection[int],
) -> None:
    """Refuses what cannot be honoured.

    Args:
        request: To be added.
        max_model_len: Tokens that the context holds.
        num_tokens: Tokens that the tokenizer knows.
        end_token_ids: The model's own end tokens.

    Raises:
        RequestError: The prompt does not fit, or a field has a value out of the engine's range.
    """
    sampling = request.sampling
    if not isinstance(sampling, SamplingParams):
        raise _error("sampling", f"expected SamplingParams, found {_shown(sampling)}")
    for name, allowed in RANGES.items():
        owner = sampling if hasattr(sampling, name) else request
        _check_range(name, getattr(owner, name), allowed)
    for name in SWITCHES:
        owner = sampling if hasattr(sampling, name) else request
        if not isinstance(getattr(owner, name), bool):
            raise _error(name, "expected true or false")
    for name, texts in TEXTS.items():
        _check_texts(name, getattr(sampling, name), texts)
    if not isinstance(request.request_id, str) or not request.request_id:
        raise _error("request_id", "expected a text that is not empty")
    if request.cache_salt != "":
        _check_texts("cache_salt", (request.cache_salt,), CACHE_SALT)
    _check_count("prompt", request.prompt_token_ids, MAX_INT32)
    _check_lengths(len(request.prompt_token_ids), sampling, max_model_len)
    _check_ids("prompt", request.prompt_token_ids, num_tokens)  # after its length: no long loop
    for name, tokens in TOKENS.items():
        _check_tokens(name, getattr(sampling, name), tokens, num_tokens)
    _check_biases(sampling, len(end_token_ids), num_tokens)
    _check_grammar(request.grammar)
    if request.grammar is not None:
        _check_grammar(request.grammar.instead, is_inner=True)
    _check_limit(request.reasoning_limit)


def _error(name: str, reason: str) -> RequestError:
    return RequestError(f"{name}: {reason}.", param=name)


def _check_range(name: str, value: Any, allowed: Range) -> None:
    if not allowed.holds(value):
        raise _error(name, f"expected {allowed}, found {_shown(value)}")


def _shown(value: Any) -> str:
    """A value in an error: short, whatever it is."""
    if isinstance(value, int) and abs(value) > MAX_INT64:
        return "a number of over 64 bits"
    if value is None or isinstance(value, bool | Real):
        return str(value)
    return f"a {type(value).__name__}"


def _check_texts(name: str, values: Any, allowed: Texts) -> None:
    """Also that they are texts at all: half a surrogate pair cannot be written as UTF-8."""
    _check_count(name, values, allowed.most)
    for value in values:
        if not isinstance(value, str) or not 0 < len(value) <= allowed.most_chars:
            raise _error(name, f"expected texts of 1 to {allowed.most_chars} characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            reason = "expected valid Unicode, found half a surrogate pair"
            raise _error(name, reason) from None


def _check_count(name: str, values: Any, most: int) -> None:
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise _error(name, f"expected a list, found {_shown(values)}")
    if len(values) > most:
        raise _error(name, f"expected at most {most}, found {len(values)}")


def _check_tokens(name: str, values: Any, allowed: TokenLists, num_tokens: int) -> None:
    _check_count(name, values, allowed.most)
    if not allowed.most_tokens:
        _check_ids(name, values, num_tokens)
        return
    for value in values:
        _check_count(name, value, allowed.most_tokens)
        if not value:
            raise _error(name, "has an empty sequence; each needs at least one token")
        _check_ids(name, value, num_tokens)


def _check_ids(name: str, token_ids: Sequence[int], num_tokens: int) -> None:
    try:
        ids = np.frombuffer(array("i", token_ids), np.int32)
    except TypeError:
        raise _error(name, "expected token ids, which are whole numbers") from None
    except OverflowError:
        ids = np.array([-1])
    if len(ids) and not (ids.min() >= 0 and ids.max() < num_tokens):
        raise _error(name, f"has token ids outside the vocabulary of {num_tokens}")


def _check_biases(sampling: SamplingParams, num_ends: int, num_tokens: int) -> None:
    _check_count("logit_bias", sampling.logit_bias, MAX_INT32)
    for pair in sampling.logit_bias:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise _error("logit_bias", "expected pairs of a token id and a number")
        _check_range("logit_bias", pair[1], BIAS)
    _check_ids("logit_bias", [token_id for token_id, _ in sampling.logit_bias], num_tokens)
    num_biases = (
        len(sampling.logit_bias)
        + num_ends
        + len(sampling.stop_token_ids)
        + len(sampling.allowed_token_ids)
    )
    if num_biases > MAX_BIASES:
        raise RequestError(
            f"logit_bias, stop_token_ids and allowed_token_ids have {num_biases} entries "
            f"together; at most {MAX_BIASES} can be.",
            param="logit_bias",
        )


def _check_lengths(num_prompt: int, sampling: SamplingParams, longest: int) -> None:
    """How much is asked for does not matter: max_tokens is cut to what the context leaves."""
    if num_prompt == 0:
        raise RequestError("The prompt is empty: it must have at least one token.", param="prompt")
    if num_prompt >= longest:
        raise RequestError(
            f"This model's context holds {longest} tokens, prompt and output together, but the "
            f"prompt has {num_prompt}. Shorten the prompt.",
            param="messages",
            code="context_length_exceeded",
        )
    if sampling.prompt_logprobs is None:
        return
    most = MAX_PROMPT_SCORES // num_prompt - 1
    if sampling.prompt_logprobs > most:
        advice = f"ask for at most {most}" if most >= 0 else "shorten the prompt"
        raise _error(
            "prompt_logprobs",
            f"{sampling.prompt_logprobs} for each of {num_prompt} tokens are more "
            f"log-probabilities than the {MAX_PROMPT_SCORES} that one answer can have; {advice}",
        )


def _check_grammar(grammar: Any, *, is_inner: bool = False) -> None:
    """What the compiler of grammars relies on; whether it can be compiled is found out there."""
    if grammar is None:
        return
    if not isinstance(grammar, Grammar):
        raise _error("grammar", f"expected a Grammar, found {_shown(grammar)}")
    if grammar.kind not in _GRAMMAR_KINDS:
        raise _error("grammar", f"kind: expected one of {', '.join(_GRAMMAR_KINDS)}")
    texts = (grammar.text, grammar.param, *([] if grammar.after is None else [grammar.after]))
    if not all(isinstance(text, str) for text in texts) or grammar.after == "":
        raise _error("grammar", "text, param and after: expected texts, and none that is empty")
    for name in ("marks", "triggers"):
        values = getattr(grammar, name)
        if not isinstance(values, tuple) or not all(isinstance(v, str) and v for v in values):
            raise _error("grammar", f"{name}: expected a tuple of texts that are not empty")
    if is_inner and grammar.instead is not None:
        raise _error("grammar", "instead: expected a grammar without one of its own")


def _check_limit(limit: Any) -> None:
    if limit is None:
        return
    if not isinstance(limit, ReasoningLimit):
        raise _error("reasoning_limit", f"expected a ReasoningLimit, found {_shown(limit)}")
    _check_range("thinking_budget", limit.max_tokens, RANGES["min_tokens"])
    if not all(isinstance(mark, str) and mark for mark in (limit.opens, limit.closes)):
        raise _error("reasoning_limit", "opens and closes: expected texts that are not empty")
