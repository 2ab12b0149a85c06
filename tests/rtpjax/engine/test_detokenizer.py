import json
import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rtpjax.engine.detokenizer import MAX_WINDOW_TOKENS, Detokenizer
from tests.examples import num_examples

SENTENCES = ["the quick brown fox jumps over the lazy dog, naïvely: don't stop!"] * 8
HARD_TEXTS = [
    "plain words and  double  spaces",
    "🦊👩‍👩‍👧‍👦 families 🇨🇦 and 你好，世界 mixed",
    "e\u0301 combining a\u0308\u0304 marks",
    "\ufffd a real replacement character \ufffd",
    "नमस्ते สวัสดี ✌🏽\n\ttabs",
    "the quick brown fox jumps over the lazy dog " * 4,
]
SPECIAL = ["<unk>", "<s>", "</s>"]


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2 style: each character of a token is one byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama-2 style: metaspace, `<0xE4>` for what the vocabulary lacks, no leading space."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL + byte_tokens, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    # The trainer can only make them special; in a real vocabulary they are ordinary tokens.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in SPECIAL]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))


TOKENIZERS = {"byte_level": byte_level, "byte_fallback": byte_fallback}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def stream(detokenizer: Detokenizer, token_ids, push_len: int = 1) -> str:
    pushes = [token_ids[i : i + push_len] for i in range(0, len(token_ids), push_len)]
    return "".join([detokenizer.push(push) for push in pushes] + [detokenizer.finish()])


def decode(tokenizer, token_ids, skip_special_tokens: bool = True) -> str:
    return tokenizer.decode(
        token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=num_examples(300))
@given(data=st.data())
def test_joined_increments_are_the_decoded_ids(name, data):
    tokenizer = TOKENIZERS[name]()
    # Two ids above the vocabulary: models pad their logits.
    token_ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 1), max_size=60))
    skip = data.draw(st.booleans())
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    streamed = stream(detokenizer, token_ids, data.draw(st.integers(1, 7)))
    assert streamed == decode(tokenizer, token_ids, skip)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=num_examples(150))
@given(text=st.text(max_size=40), cut=st.integers(0, 40), push_len=st.integers(1, 5))
def test_output_continues_the_prompt(name, text, cut, push_len):
    tokenizer = TOKENIZERS[name]()
    prompt_ids, output_ids = encode(tokenizer, text[:cut]), encode(tokenizer, text[cut:])
    streamed = stream(Detokenizer(tokenizer, prompt_token_ids=prompt_ids), output_ids, push_len)
    assert decode(tokenizer, prompt_ids) + streamed == decode(tokenizer, prompt_ids + output_ids)


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_real_texts_stream_without_replacement_characters(tokenizer, text):
    detokenizer = Detokenizer(tokenizer)
    token_ids = encode(tokenizer, text)
    increments = [detokenizer.push([token_id]) for token_id in token_ids]
    assert "".join(increments) + detokenizer.finish() == decode(tokenizer, token_ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in increment for increment in increments)
    assert sum(map(bool, increments)) > 5


def test_leading_space_depends_on_the_prompt():
    tokenizer = byte_fallback()
    fox = encode(tokenizer, "fox")
    assert tokenizer.convert_ids_to_tokens(fox)[0].startswith("▁")
    assert stream(Detokenizer(tokenizer), fox) == "fox"
    assert stream(Detokenizer(tokenizer, prompt_token_ids=encode(tokenizer, "the")), fox) == " fox"
    # A prompt of special tokens only has no text to continue.
    assert stream(Detokenizer(tokenizer, prompt_token_ids=[1]), fox) == "fox"


def test_prompt_may_end_inside_a_character():
    tokenizer = byte_level()
    token_ids = encode(tokenizer, "a🦊b")
    assert len(token_ids) == 6
    for cut, expected in [(1, "🦊b"), (2, "🦊b"), (4, "🦊b"), (5, "b"), (6, "")]:
        detokenizer = Detokenizer(tokenizer, prompt_token_ids=token_ids[:cut])
        assert stream(detokenizer, token_ids[cut:]) == expected


@pytest.mark.parametrize("char", ["é", "你", "🦊"])
def test_prompt_that_ends_in_byte_tokens_is_not_repeated(char):
    tokenizer = byte_fallback()
    prompt_ids = encode(tokenizer, "fox " + 5 * char)
    output_ids = prompt_ids[-len(char.encode()) :]
    assert stream(Detokenizer(tokenizer, prompt_token_ids=prompt_ids), output_ids) == char


def test_incomplete_character_is_held_then_flushed(tokenizer):
    token_ids = encode(tokenizer, "a🦊")[:-1]
    detokenizer = Detokenizer(tokenizer)
    increments = [detokenizer.push([token_id]) for token_id in token_ids]
    assert "".join(increments) == "a"
    assert detokenizer.finish() == decode(tokenizer, token_ids)[1:]
    assert detokenizer.finish() == ""


def test_window_does_not_grow(tokenizer):
    rng = random.Random(0)
    detokenizer = Detokenizer(tokenizer)
    text_ids = sorted(set(range(3, len(tokenizer))) - detokenizer._byte_ids)
    for _ in range(500):
        detokenizer.push([rng.choice(text_ids)])
        assert len(detokenizer._window) <= MAX_WINDOW_TOKENS


def stop_at(text: str, **options) -> tuple[str, str | None]:
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer, **options)
    return stream(detokenizer, encode(tokenizer, text)), detokenizer.stop_reason


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("the quick fox", ("quick",), ("the ", "quick")),
        ("the quick fox", ("k f", "zzz"), ("the quic", "k f")),
        ("the quick fox", ("quack",), ("the quick fox", None)),
        ("ends in qui", ("quick",), ("ends in qui", None)),
        ("abababc!", ("ababc",), ("ab", "ababc")),
        ("xabcx", ("abc", "b"), ("xa", "b")),
        ("xabcx", ("bc", "abc"), ("x", "abc")),
        ("say 你好🦊", ("好",), ("say 你", "好")),
        ("\n\nUser: hi", ("\nUser:",), ("\n", "\nUser:")),
    ],
)
def test_stop_strings(text, stop, expected):
    assert stop_at(text, stop=stop) == expected


def test_stop_string_can_stay_in_the_text():
    options = {"stop": ("quick",), "include_stop_str_in_output": True}
    assert stop_at("the quick fox", **options) == ("the quick", "quick")


def test_text_after_a_stop_is_dropped():
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer, stop=("fox",))
    assert detokenizer.push(encode(tokenizer, "the fox jumps")) == "the "
    assert detokenizer.push(encode(tokenizer, " over")) == ""
    assert detokenizer.finish() == ""


def test_possible_beginning_of_a_stop_is_held_no_longer_than_needed():
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer, stop=("###END",))
    increments = [detokenizer.push(encode(tokenizer, char)) for char in "a##b###E!"]
    assert increments == ["a", "", "", "##b", "", "", "", "", "###E!"]


@pytest.mark.parametrize(("min_tokens", "expected"), [(0, "a"), (2, "a"), (3, "abcxa"), (9, None)])
@pytest.mark.parametrize("push_len", [1, 8])
def test_stop_string_before_min_tokens_is_text(min_tokens, expected, push_len):
    tokenizer = byte_level()
    token_ids = [encode(tokenizer, char)[0] for char in "abcxabc"]
    detokenizer = Detokenizer(tokenizer, stop=("b",), min_tokens=min_tokens)
    assert stream(detokenizer, token_ids, push_len) == (expected or "abcxabc")
    assert detokenizer.stop_reason == ("b" if expected else None)


def test_stop_inside_held_text_does_not_count_late():
    """ "ab" is complete before min_tokens, yet held as the beginning of the longer stop string."""
    tokenizer = byte_level()
    token_ids = [encode(tokenizer, char)[0] for char in "xabz"]
    detokenizer = Detokenizer(tokenizer, stop=("xaby", "ab"), min_tokens=4)
    assert stream(detokenizer, token_ids) == "xabz"
    assert detokenizer.stop_reason is None


def test_stop_completed_by_the_flush():
    tokenizer = byte_fallback()
    detokenizer = Detokenizer(tokenizer, stop=("🦊",))
    assert stream(detokenizer, encode(tokenizer, "fox 🦊")) == "fox "
    assert detokenizer.stop_reason == "🦊"


@settings(max_examples=num_examples(300))
@given(
    text=st.text("ab🦊", max_size=30),
    stop=st.lists(st.text("ab🦊", min_size=1, max_size=4), min_size=1, max_size=3),
    push_len=st.integers(1, 5),
)
def test_stop_strings_against_a_character_loop(text, stop, push_len):
    ends = [i for i in range(len(text) + 1) if any(text[:i].endswith(s) for s in stop)]
    reason = max((s for s in stop if text[: ends[0]].endswith(s)), key=len) if ends else None
    expected = text[: ends[0] - len(reason)] if reason else text
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer, stop=tuple(stop))
    assert stream(detokenizer, encode(tokenizer, text), push_len) == expected
    assert detokenizer.stop_reason == reason
