"""What the engine refuses before it takes a request in."""

from __future__ import annotations

import itertools
from collections.abc import Collection

from rtpjax.config import EngineConfig
from rtpjax.engine.request import GenerationRequest, SamplingParams
from rtpjax.engine.sampling import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_NGRAM_TOKENS,
)
from rtpjax.errors import RequestError


def check_request(
    request: GenerationRequest,
    config: EngineConfig,
    num_tokens: int,
    end_token_ids: Collection[int],
) -> None:
    """Refuses what cannot be honoured.

    Args:
        request: To be added.
        config: The engine's settings.
        num_tokens: Tokens that the tokenizer knows.
        end_token_ids: The model's own end tokens.

    Raises:
        RequestError: The prompt does not fit, or a parameter is out of the engine's range.
    """
    sampling = request.sampling
    _check_lengths(len(request.prompt_token_ids), config.max_model_len)
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise RequestError("max_tokens must be at least 1.", param="max_tokens")
    _check_vocabulary(request, num_tokens)
    _check_counts(sampling, len(end_token_ids))
    if max(sampling.logprobs or 0, sampling.prompt_logprobs or 0) > MAX_LOGPROBS:
        raise RequestError(f"logprobs can be at most {MAX_LOGPROBS}.", param="top_logprobs")


def _check_lengths(num_prompt: int, longest: int) -> None:
    """How much is asked for does not matter: max_tokens is cut to what the context leaves."""
    if num_prompt == 0:
        raise RequestError("The prompt is empty: it must have at least one token.")
    if num_prompt >= longest:
        raise RequestError(
            f"This model's context holds {longest} tokens, prompt and output together, but the "
            f"prompt has {num_prompt}. Shorten the prompt.",
            param="messages",
            code="context_length_exceeded",
        )


def _check_vocabulary(request: GenerationRequest, num_tokens: int) -> None:
    sampling = request.sampling
    # (A loop over a million tokens would hold up the event loop.)
    if not 0 <= min(request.prompt_token_ids) <= max(request.prompt_token_ids) < num_tokens:
        raise RequestError(
            f"The prompt has token ids outside the vocabulary of {num_tokens}.", param="prompt"
        )
    for name, token_ids in (
        ("logit_bias", (token_id for token_id, _ in sampling.logit_bias)),
        ("bad_words", itertools.chain.from_iterable(sampling.bad_words)),
        ("allowed_token_ids", sampling.allowed_token_ids),
    ):
        if not all(0 <= t < num_tokens for t in token_ids):
            raise RequestError(
                f"{name} has token ids outside the vocabulary of {num_tokens}.", param=name
            )


def _check_counts(sampling: SamplingParams, num_ends: int) -> None:
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
    words = sampling.bad_words
    if len(words) > MAX_BAD_WORDS or any(
        not 0 < len(word) <= MAX_BAD_WORD_TOKENS for word in words
    ):
        raise RequestError(
            f"bad_words can be {MAX_BAD_WORDS} token sequences of 1 to {MAX_BAD_WORD_TOKENS} "
            "tokens at most.",
            param="bad_words",
        )
    if not 0 <= sampling.no_repeat_ngram_size <= MAX_NGRAM_TOKENS:
        raise RequestError(
            f"no_repeat_ngram_size can be at most {MAX_NGRAM_TOKENS}.",
            param="no_repeat_ngram_size",
        )
    if not all(sampling.stop_sequences):
        raise RequestError("stop_words_list has an empty sequence.", param="stop_words_list")
