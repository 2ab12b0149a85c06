from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtpjax.dummy_tokenizer import END, LEAST_VOCAB_SIZE, START, dummy_tokenizer
from rtpjax.engine.grammar import GrammarCompiler
from rtpjax.engine.request import Grammar
from rtpjax.errors import CheckpointError
from rtpjax.tokenizer import eos_token_ids, load_tokenizer
from tests.checkpoints_conv import tiny
from tests.rtpjax.test_tokenizer import write_vocabulary

TOKENIZER = dummy_tokenizer(1000)


@given(st.text())
def test_any_text_comes_back(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    if START not in text and END not in text:
        assert ids == list(text.encode())


def test_every_id_has_a_text_of_its_own():
    texts = [TOKENIZER.decode([i]) for i in range(LEAST_VOCAB_SIZE - 2, 1000)]
    assert texts[:5] == [START, END, " a", " b", " c"]
    assert texts[2 + 25 : 2 + 28] == [" z", " aa", " ab"]
    assert len(set(texts)) == len(texts) == 1000 - 256
    assert len(TOKENIZER) == 1000


def test_the_least_vocabulary():
    assert len(dummy_tokenizer(LEAST_VOCAB_SIZE)) == 258
    with pytest.raises(CheckpointError, match=r"vocab_size is 64, .* at least 258 tokens"):
        dummy_tokenizer(64)


def test_a_chat_is_rendered_and_its_marks_are_tokens():
    text = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == f"{START}user\nhi{END}\n{START}assistant\n"
    assert TOKENIZER.encode(text)[:2] == [256, ord("u")]


def test_a_grammar_takes_whole_words():
    """Masks are over all tokens: words that fit a string are allowed beside bytes."""
    compiler = GrammarCompiler(TOKENIZER, [257])
    grammar = Grammar("json_schema", json.dumps({"type": "string", "maxLength": 9}))
    compiled = compiler.compile(grammar).grammar
    assert compiled is not None
    matcher = compiled.matcher.deep_copy()
    ids = [*b'"ab', 258, 300, *b'"']
    assert matcher.try_consume_tokens(ids) == len(ids)
    assert matcher.is_stopped()
    assert compiled.matcher.deep_copy().try_consume_tokens([258]) == 0


def test_a_config_alone_gets_one_and_its_ends_mean_nothing(tmp_path: Path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"vocab_size": 300, "eos_token_id": [2, 3]}))
    tokenizer = load_tokenizer(file)
    assert len(tokenizer) == 300
    assert eos_token_ids(file, {"eos_token_id": [2, 3]}, tokenizer) == (257,)
    file.write_text(json.dumps({"vocab_size": "many"}))
    with pytest.raises(CheckpointError, match="vocab_size must be a positive integer"):
        load_tokenizer(file)


def test_a_tokenizer_beside_the_config_wins(tmp_path: Path):
    load_tokenizer(write_vocabulary(tmp_path / "m.gguf")).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny.config()))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    tokenizer = load_tokenizer(file)
    assert len(tokenizer) == 40
    assert eos_token_ids(file, {}, tokenizer) == (7, 2)
