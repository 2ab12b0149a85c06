"""Random walks through a compiled grammar: what a model without any sense would write under it."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from checkpoints_conv.package_models import ensure_model
from rtpjax.engine.grammar import CompiledGrammar, GrammarCompiler
from rtpjax.engine.request import Grammar
from rtpjax.errors import CheckpointError
from server.tool_parsers import tool_formats
from tests.e2e import byte_model


@cache
def tokenizer(has_marks: bool) -> PreTrainedTokenizerFast:
    """The embedded model's, or a byte-level one that has all marks as special tokens."""
    if not has_marks:
        folder = Path(os.environ.get("RTPJAX_CACHE", "~/.cache/rtpjax")).expanduser()
        try:
            return AutoTokenizer.from_pretrained(ensure_model(folder, has_progress=False))
        except CheckpointError as error:
            pytest.skip(f"the embedded model is not here: {error}")
    made = PreTrainedTokenizerFast(
        tokenizer_object=byte_model.tokenizer().backend_tokenizer.from_str(
            byte_model.tokenizer().backend_tokenizer.to_str()
        ),
        eos_token=byte_model.SPECIAL[0],
    )
    marks = {
        mark
        for tool_format in tool_formats().values()
        for written in tool_format.written
        for mark in tool_format.marks_of(written)
        if mark[0] in "<[" and mark != "<parameter="
    }
    made.backend_tokenizer.add_special_tokens(
        [AddedToken(mark, special=True) for mark in sorted(marks)]
    )
    return made


@cache
def compiler(has_marks: bool) -> GrammarCompiler:
    made = tokenizer(has_marks)
    return GrammarCompiler(made, [made.convert_tokens_to_ids(str(made.eos_token))])


def compiled(grammar: Grammar, *, has_marks: bool) -> CompiledGrammar:
    found = compiler(has_marks).compile(grammar).grammar
    assert found is not None
    return found


def encode(text: str, *, has_marks: bool) -> list[int]:
    return tokenizer(has_marks).backend_tokenizer.encode(text, add_special_tokens=False).ids


def accepts(grammar: Grammar, text: str, *, has_marks: bool) -> bool:
    """Whether the text is complete under the grammar, token by token."""
    matcher = compiled(grammar, has_marks=has_marks).matcher.deep_copy()
    ids = encode(text, has_marks=has_marks)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def walk(
    grammar: Grammar,
    rng: random.Random,
    likely: str,
    closers: Sequence[str] = ('"',),
    *,
    has_marks: bool,
) -> str | None:
    """A text of the grammar; None if it has no end after some hundred tokens.

    Args:
        grammar: To walk through.
        rng: Chooses.
        likely: Its tokens are preferred where they are allowed, or strings would never end.
        closers: Texts that are tried now and then, as a whole.
        has_marks: As in tokenizer.
    """
    made = tokenizer(has_marks)
    matcher = compiled(grammar, has_marks=has_marks).matcher.deep_copy()
    preferred = np.unique(encode(likely, has_marks=has_marks))
    mask = allocate_token_bitmask(1, len(made))
    ids: list[int] = []
    for _ in range(500):
        if rng.random() < 0.1:
            closer, ahead = encode(rng.choice(closers), has_marks=has_marks), matcher.deep_copy()
            if ahead.try_consume_tokens(closer) == len(closer):
                matcher = ahead
                ids += closer
                if matcher.is_stopped():
                    break
        fill_next_token_bitmask(matcher, mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        wanted = np.intersect1d(allowed, preferred)
        pool = wanted if len(wanted) and rng.random() < 0.6 else allowed
        token_id = int(rng.choice(pool))
        assert matcher.consume_token(token_id)
        if made.convert_ids_to_tokens(token_id) == str(made.eos_token):
            break
        ids.append(token_id)
        if matcher.is_stopped():
            break
    else:
        return None
    return made.backend_tokenizer.decode(ids, skip_special_tokens=False)
