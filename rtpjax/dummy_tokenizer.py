"""A tokenizer for a model of random weights that has none: bytes, two marks, and made-up words.

    ids      0-255           a byte each: any text can be encoded
             256, 257        <|im_start|>, <|im_end|>
             258 and above   " a", " b", ... " aa", ...: never encoded; what the model says is text

It has as many tokens as the model, so every id has a text, and masks of grammars have the real
size.
"""

from __future__ import annotations

import itertools
import string

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rtpjax.errors import CheckpointError

START, END = "<|im_start|>", "<|im_end|>"
LEAST_VOCAB_SIZE = 256 + 2

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class DummyTokenizer(PreTrainedTokenizerFast):
    """A tokenizer that dummy_tokenizer made: ids that config.json gives a meaning have none."""


def dummy_tokenizer(vocab_size: int) -> DummyTokenizer:
    """A tokenizer of vocab_size tokens.

    Raises:
        CheckpointError: There are fewer than bytes and marks.
    """
    if vocab_size < LEAST_VOCAB_SIZE:
        raise CheckpointError(
            f"vocab_size is {vocab_size}, and the tokenizer that LOAD_FORMAT=dummy makes has at "
            f"least {LEAST_VOCAB_SIZE} tokens (bytes, and marks of a chat's turns). Set vocab_size "
            "in config.json to at least that, or TOKENIZER_PATH to a tokenizer of the model."
        )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spellings = _spellings()
    words = [f"{spellings[ord(' ')]}{_letters(n)}" for n in range(vocab_size - LEAST_VOCAB_SIZE)]
    vocab = {text: i for i, text in enumerate([*spellings, START, END, *words])}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = byte_level
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in (START, END)])
    tokenizer = DummyTokenizer(tokenizer_object=backend, eos_token=END)
    tokenizer.chat_template = _CHATML
    return tokenizer


def _letters(number: int) -> str:
    """0, 1, ... as a, b, ... z, aa, ab, ..."""
    letters = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        letters = string.ascii_lowercase[digit] + letters
    return letters


def _spellings() -> list[str]:
    """How a byte-level vocabulary spells each byte: as itself where it can be printed.

    Source: `bytes_to_unicode` of GPT-2, https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = itertools.count(256)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
