"""How much a request may ask of sampling: sizes of arrays that are compiled into programs."""

from __future__ import annotations

MAX_LOGPROBS = 20
MAX_BIASES = 512  # logit biases, end tokens and allowed tokens of one request
MAX_BAD_WORDS = 96
MAX_BAD_WORD_TOKENS = 8
MAX_NGRAM_TOKENS = 128
