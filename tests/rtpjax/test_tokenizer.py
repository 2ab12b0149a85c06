from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from tokenizers import pre_tokenizers

from rtpjax.errors import CheckpointError
from rtpjax.gguf_file import read_gguf
from rtpjax.gguf_tokenizer import _SPLITS, tokenizer_from_gguf
from rtpjax.tokenizer import eos_token_ids, load_tokenizer
from tests.checkpoints_conv import tiny


def write_vocabulary(path: Path, pre: str = "smollm", **token_ids: int) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    tiny.add_tokenizer(writer, 40, pre)
    for kind, token_id in token_ids.items():
        writer.add_uint32(f"tokenizer.ggml.{kind}_token_id", token_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def pieces(pre: str, text: str) -> list[str]:
    return [piece for piece, _ in _SPLITS[pre].pre_tokenizer().pre_tokenize_str(text)]


def test_a_gguf_has_a_whole_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_vocabulary(tmp_path / "m.gguf"))
    ids = tokenizer.encode("<|im_start|>ab  12<|im_end|>")
    # The two spaces are one token: digits are cut off before spaces are grouped.
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|im_start|>", "a", "b", "ĠĠ", "1", "2", "<|im_end|>",
    ]  # fmt: skip
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab  12"
    assert tokenizer.eos_token_id == 2
    assert tokenizer.bos_token_id == 1
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "hi"


def test_a_saved_tokenizer_splits_like_the_one_it_was(tmp_path: Path) -> None:
    first = load_tokenizer(write_vocabulary(tmp_path / "m.gguf"))
    first.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    for text in ("  12", "a b", " <|im_end|>a", "21  a"):
        assert again.encode(text) == first.encode(text)
    assert again.chat_template == first.chat_template


def test_splits() -> None:
    assert pieces("smollm", "  12 ab") == ["ĠĠ", "1", "2", "Ġab"]
    assert pieces("gpt-2", "  12 ab") == ["Ġ", "Ġ12", "Ġab"]
    assert pieces("qwen2", "a 12\n\n b") == ["a", "Ġ", "1", "2", "ĊĊ", "Ġb"]
    assert pieces("llama-bpe", "a1234 It's") == ["a", "123", "4", "ĠIt", "'s"]
    assert pieces("tekken", "HelloWorld 12") == ["Hello", "World", "Ġ", "1", "2"]


def test_gpt2_bytes_are_the_alphabet_of_every_split() -> None:
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    text = "Tête-à-tête 12\t\r\n 你好🙂"
    for pre in _SPLITS:
        assert set("".join(pieces(pre, text))) <= alphabet


@pytest.mark.parametrize(("pre", "has_bos"), [("smollm", False), ("llama-bpe", True)])
def test_bos_is_added_where_llama_cpp_adds_it(tmp_path: Path, pre: str, has_bos: bool) -> None:
    tokenizer = tokenizer_from_gguf(read_gguf(write_vocabulary(tmp_path / "m.gguf", pre)))
    assert (tokenizer.encode("a")[0] == 1) is has_bos


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'klingon'.*TOKENIZER_PATH"):
        load_tokenizer(write_vocabulary(tmp_path / "m.gguf", "klingon"))


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


def test_every_end_of_sequence_that_is_named_counts(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_vocabulary(tmp_path / "m.gguf"))
    assert eos_token_ids(tmp_path / "m.gguf", {}, tokenizer) == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    assert eos_token_ids(tmp_path, {"eos_token_id": 0}, tokenizer) == (7, 2, 0)
