"""Exact bytes of tokens, for both ways to spell a vocabulary."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from server.token_text import TokenText
from tests.server.scripted_engine import make_tokenizer


@pytest.mark.parametrize("text", ["plain text\n", "héllo 你好 🙂", "\x00\x7f\t"])
def test_bytes_of_byte_level_tokens_join_to_the_text(text: str) -> None:
    tokenizer = make_tokenizer()
    tokens = TokenText(tokenizer)
    ids = tokenizer.backend_tokenizer.encode(text).ids
    assert b"".join(tokens.bytes_of(i) for i in ids) == text.encode()


def test_half_a_character_keeps_its_bytes() -> None:
    tokenizer = make_tokenizer()
    tokens = TokenText(tokenizer)
    first, second = tokenizer.backend_tokenizer.encode("é").ids
    assert [tokens.bytes_of(first), tokens.bytes_of(second)] == [b"\xc3", b"\xa9"]
    assert tokens.text_of(first) == "\ufffd"


def test_special_and_padded_ids() -> None:
    tokenizer = make_tokenizer()
    tokens = TokenText(tokenizer)
    assert tokens.text_of(tokenizer.eos_token_id) == "<|im_end|>"
    assert tokens.bytes_of(len(tokenizer) + 5) == b""


def test_sentencepiece_spelling() -> None:
    vocab = {"<unk>": 0, "▁the": 1, "<0x0A>": 2, "é": 3}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokens = TokenText(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert [tokens.bytes_of(i) for i in (1, 2, 3)] == [b" the", b"\n", "é".encode()]


def test_texts_of_many_tokens_are_those_of_each():
    tokens = TokenText(make_tokenizer())
    ids = list(range(len(make_tokenizer()))) * 2
    assert tokens.texts_of(ids) == [tokens.text_of(token_id) for token_id in ids]
