"""Offsets of tokens in texts, against a count of characters byte by byte."""

from __future__ import annotations

from functools import cache
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rtpjax.engine.detokenizer import Detokenizer
from server.text_offsets import TextOffsets, prompt_offsets
from server.token_text import TokenText
from tests.server.scripted_engine import make_tokenizer


@cache
def byte_level() -> tuple[PreTrainedTokenizerFast, TokenText]:
    tokenizer = make_tokenizer()
    return tokenizer, TokenText(tokenizer)


@cache
def sentencepiece() -> tuple[PreTrainedTokenizerFast, TokenText]:
    """As Llama 2: a blank is `▁`, single bytes, and the first blank of a text is dropped."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁", "a", "é", "▁🦙"]
    backend = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    return tokenizer, TokenText(tokenizer)


def characters(raw: bytes) -> list[tuple[str, int]]:
    """Each character that the bytes decode to, with the position of its first byte."""
    found, at = [], 0
    while at < len(raw):
        rest = raw[at:].decode("utf-8", errors="replace")
        # The shortest beginning after which the others stand as they do in the whole.
        size = next(k for k in range(1, 5) if raw[at + k :].decode("utf-8", "replace") == rest[1:])
        found.append((rest[0], at))
        at += size
    return found


def check(found: list[int], ids: list[int], *, start: int = 0, skip_special: bool = False) -> None:
    """Each token must have the index of the character in which its first byte stands."""
    tokenizer, tokens = byte_level()
    special = set(tokenizer.all_special_ids)
    pieces = [b"" if skip_special and i in special else tokens.bytes_of(i) for i in ids]
    starts = [at for _, at in characters(b"".join(pieces))]
    position = 0
    for piece, offset in zip(pieces, found, strict=True):
        if piece:  # without text it is nowhere
            assert offset - start == sum(at <= position for at in starts) - 1
        position += len(piece)


SNIPPETS = st.one_of(
    st.text(max_size=4).map(str.encode),
    st.binary(max_size=4),
    st.sampled_from([b"\xf0\x9f", b"\x99", b"\xef\xbf\xbd", b"\xe2\x80", "🦙é".encode()]),
)


@st.composite
def token_ids(draw: Any) -> list[int]:
    tokenizer, _ = byte_level()
    ids: list[int] = []
    for piece in draw(st.lists(SNIPPETS, max_size=6)):
        ids += [tokenizer.convert_tokens_to_ids(_spelled(byte)) for byte in piece]
        if draw(st.booleans()):
            ids.append(draw(st.sampled_from([*tokenizer.all_special_ids, len(tokenizer) + 3])))
    return ids


def _spelled(byte: int) -> str:
    """The byte as byte-level tokenizers spell it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [each for each in range(256) if each not in printable]
    return chr(byte) if byte in printable else chr(256 + others.index(byte))


@given(ids=token_ids(), skip_special=st.booleans(), start=st.integers(0, 5))
def test_generated_tokens(ids: list[int], skip_special: bool, start: int) -> None:
    tokenizer, tokens = byte_level()
    offsets = TextOffsets(tokenizer, tokens, start=start, skip_special_tokens=skip_special)
    found = [offsets.of(token_id) for token_id in ids]
    check(found, ids, start=start, skip_special=skip_special)


@given(ids=token_ids().filter(bool))
def test_a_prompt_of_token_ids(ids: list[int]) -> None:
    tokenizer, tokens = byte_level()
    ids = [token_id for token_id in ids if token_id < len(tokenizer)]
    text = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    check(prompt_offsets(tokenizer, tokens, ids, text), ids)


@given(
    pieces=st.lists(
        st.one_of(st.text(max_size=5), st.sampled_from(["<|im_start|>", "🦙", "é"])), max_size=6
    )
)
def test_a_prompt_that_is_text(pieces: list[str]) -> None:
    """Special tokens in it are text; the one that a tokenizer puts before it is not."""
    tokenizer, tokens = byte_level()
    text = "".join(pieces)
    ids = [tokenizer.bos_token_id, *tokenizer.backend_tokenizer.encode(text).ids]
    if text.startswith("<|im_start|>"):
        ids = ids[1:]
    offsets = prompt_offsets(tokenizer, tokens, ids, text)
    for token_id, offset in zip(ids, offsets, strict=True):
        own = tokens.whole_text_of(token_id)
        assert own is None or token_id == ids[0] or text.startswith(own, offset)
    assert offsets == sorted(offsets)


@given(ids=st.lists(st.integers(0, 262), max_size=12), start=st.sampled_from([0, 3]))
def test_tokens_of_sentencepiece(ids: list[int], start: int) -> None:
    tokenizer, tokens = sentencepiece()
    prompt = [257]
    detokenizer = Detokenizer(tokenizer, prompt_token_ids=prompt)
    text = "x" * start + detokenizer.push(ids) + detokenizer.finish()
    offsets = TextOffsets(
        tokenizer, tokens, start=start, prompt_token_ids=prompt, skip_special_tokens=True
    )
    found = [offsets.of(token_id) for token_id in ids]
    for token_id, offset in zip(ids, found, strict=True):
        if token_id > 256 and not tokens.is_special(token_id):
            own = tokens.whole_text_of(token_id)
            assert own is not None and text.startswith(own, offset)


def test_characters_of_single_bytes() -> None:
    tokenizer, tokens = sentencepiece()
    ids = [1 + byte for byte in "é🦙".encode()] + [257]
    offsets = TextOffsets(tokenizer, tokens, prompt_token_ids=[257])
    assert [offsets.of(token_id) for token_id in ids] == [0, 0, 1, 1, 1, 1, 2]


def test_the_first_blank_of_a_text_is_dropped() -> None:
    tokenizer, tokens = sentencepiece()
    assert prompt_offsets(tokenizer, tokens, [257, 257, 259], "the thea") == [0, 3, 7]


@pytest.mark.parametrize("text", ["e\u0301 x", "a e\u0301e\u0301\u0301 xy", "\u212b x"])
def test_a_prompt_that_the_tokenizer_rewrites(text: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ids = tokenizer.backend_tokenizer.encode(text).ids
    last = prompt_offsets(tokenizer, TokenText(tokenizer), ids, text)[-1]
    assert last == len(text) - 1
