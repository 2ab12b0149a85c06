"""A tiny Llama with random weights over bytes and some tokens that join pieces of JSON."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rtpjax.engine.runner import Runner
from rtpjax.models import ModelConfig
from tests.rtpjax.engine import tiny

SPECIAL = ("<|end|>", "<|start|>", "<|mark|>")
# Tokens that cross the borders of a grammar's parts, and some that it must refuse.
JOINED = ('{"', '":', '",', '"}', '"}}', "}}", "},", "],", "[[", '["', '"]', "\n<", "tool", "_call",
          '": "', "null", "true", "12", "00", "ab", "é", "漢", "\\n", '\\"', "</")  # fmt: skip
VOCAB = 320
CONFIG = tiny.changed(
    tiny.CONFIG,
    max_model_len=2048,
    page_size=32,
    num_pages=16 * 64 + 1,
    max_num_seqs=16,
    max_num_batched_tokens=64,
    max_num_waiting=2000,
)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for text in JOINED:
        word = byte_level.pre_tokenize_str(text)[0][0]
        for i in range(1, len(word)):
            if word[: i + 1] not in vocab:
                vocab[word[: i + 1]] = len(vocab)
                merges.append((word[:i], word[i]))
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = byte_level
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    assert backend.get_vocab_size() < VOCAB
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIAL[0])


def end_id() -> int:
    return token_id(SPECIAL[0])


def token_id(text: str) -> int:
    found = tokenizer().backend_tokenizer.token_to_id(text)
    assert found is not None
    return found


def encode(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().backend_tokenizer.encode(text).ids)


@cache
def runner() -> Runner:
    """Compiled once."""
    model = ModelConfig.from_hf(tiny.HF_CONFIG | {"max_position_embeddings": 2048})
    return tiny.make_runner(CONFIG, model, len(tokenizer()))


def make_engine(**settings) -> tiny.CheckedEngine:
    runner().reset()
    config = tiny.changed(CONFIG, **settings)
    return tiny.CheckedEngine(runner(), config, tokenizer(), [end_id()])
