"""Builds a tokenizer from the vocabulary in a GGUF file.

A GGUF names its way of splitting text (`tokenizer.ggml.pre`) instead of describing it, so the
splits are tabulated here. transformers (5.23) has no entry for "smollm" and splits it as GPT-2
does, digits and all: "  12" becomes [" ", " ", "1", "2"] there and ["  ", "1", "2"] here.

Source: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rtpjax.errors import CheckpointError
from rtpjax.gguf_file import GgufFile

_CONTROL, _USER_DEFINED = 3, 4  # gguf.TokenType

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class _Split:
    """How text is cut before byte pairs are merged.

    Attributes:
        regex: Pieces to cut out; None for GPT-2's own.
        is_digit_alone: Whether every digit is cut off first.
        is_nfc: Whether text is brought to Unicode's NFC.
        has_whole_words: Whether a piece that is in the vocabulary is taken whole, past the merges.
        adds_bos: Whether a prompt begins with the BOS token where the file does not say.
    """

    regex: str | None = None
    is_digit_alone: bool = False
    is_nfc: bool = False
    has_whole_words: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.is_digit_alone:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.regex is not None:
            steps.append(pre_tokenizers.Split(Regex(self.regex), behavior="isolated"))
        has_own_regex = self.regex is None
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=has_own_regex))
        return pre_tokenizers.Sequence(steps)


_SPLITS = {
    "gpt-2": _Split(),
    "smollm": _Split(is_digit_alone=True),
    "starcoder": _Split(is_digit_alone=True),
    "refact": _Split(is_digit_alone=True),
    "qwen2": _Split(_QWEN2, is_nfc=True),
    "deepseek-r1-qwen": _Split(_QWEN2, is_nfc=True),
    "llama-bpe": _Split(_LLAMA3, has_whole_words=True, adds_bos=True),
    "llama3": _Split(_LLAMA3, has_whole_words=True, adds_bos=True),
    "llama-v3": _Split(_LLAMA3, has_whole_words=True, adds_bos=True),
    "tekken": _Split(_TEKKEN, has_whole_words=True, adds_bos=True),
}


def tokenizer_from_gguf(file: GgufFile) -> PreTrainedTokenizerFast:
    """The tokenizer of the model in the file, with its chat template.

    Raises:
        CheckpointError: The file has no vocabulary, or splits text in a way that is not known here.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise CheckpointError(
            f"{file.path}: no tokenizer in this file. Set TOKENIZER_PATH to a folder with one."
        )
    if kind != "gpt2":
        # Sentencepiece vocabularies carry all they need, and transformers reads them as published.
        folder, name = file.path.parent, file.path.name
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        tokenizer.chat_template = _chat_template(file.metadata)
        return tokenizer
    split = _split(file)
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level_bpe(file, split), **_tokenizer_options(file)
    )


def _split(file: GgufFile) -> _Split:
    name = file.metadata.get("tokenizer.ggml.pre", "gpt-2")
    if name not in _SPLITS:
        raise CheckpointError(
            f"{file.path}: the way {name!r} of splitting text is not known; known are "
            f"{', '.join(_SPLITS)}. Set TOKENIZER_PATH to a folder with the model's tokenizer.json."
        )
    return _SPLITS[name]


def _byte_level_bpe(file: GgufFile, split: _Split) -> Tokenizer:
    metadata = file.metadata
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, ignore_merges=split.has_whole_words)
    )
    if split.is_nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    types: list[int] = metadata.get("tokenizer.ggml.token_type", [])
    for token, token_type in zip(tokens, types, strict=False):
        if token_type in (_CONTROL, _USER_DEFINED):
            is_special = token_type == _CONTROL
            tokenizer.add_tokens([AddedToken(token, special=is_special, normalized=False)])
    bos_id = metadata.get("tokenizer.ggml.bos_token_id")
    if bos_id is not None and metadata.get("tokenizer.ggml.add_bos_token", split.adds_bos):
        bos = tokens[bos_id]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
        )
    return tokenizer


def _tokenizer_options(file: GgufFile) -> dict[str, Any]:
    """Options of tokenizer_config.json."""
    metadata = file.metadata
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    options: dict[str, Any] = {
        f"{name}_token": tokens[token_id] for name, token_id in ids.items() if token_id is not None
    }
    arch = metadata.get("general.architecture")
    options["model_max_length"] = metadata.get(f"{arch}.context_length")
    options["clean_up_tokenization_spaces"] = False
    if (template := _chat_template(metadata)) is not None:
        options["chat_template"] = template
    return options


_TEMPLATE_KEY = "tokenizer.chat_template"


def _chat_template(metadata: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The file's one chat template, or those that have names and it as the default of them."""
    named = {
        key.removeprefix(f"{_TEMPLATE_KEY}."): value
        for key, value in metadata.items()
        if key.startswith(f"{_TEMPLATE_KEY}.")
    }
    default = metadata.get(_TEMPLATE_KEY)
    if not named:
        return default
    return named if default is None else {"default": default, **named}
