"""Text to token ids, and the context's bound."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from rtpjax.errors import RequestError
from server.prompt import PromptEncoder, check_length
from tests.server.scripted_engine import make_tokenizer


def encoder() -> PromptEncoder:
    tokenizer = make_tokenizer()
    # Some tokenizer.json files have this switched on; a prompt must not be cut silently.
    tokenizer.backend_tokenizer.enable_truncation(5)
    return PromptEncoder(tokenizer)


def test_no_truncation() -> None:
    assert len(encoder().encode_completion("x" * 50).token_ids) == 50


def test_many_at_once() -> None:
    shared = encoder()
    texts = [chr(97 + i % 26) * (i + 1) for i in range(100)]

    with ThreadPoolExecutor(8) as threads:
        encoded = threads.map(shared.encode_completion, texts)
        assert [len(prompt.token_ids) for prompt in encoded] == list(range(1, 101))


def test_fits() -> None:
    check_length(9, 10, param="prompt")


@pytest.mark.parametrize(
    ("prompt_len", "message"),
    [
        (10, "context is 10 tokens, but the prompt has 10; shorten the prompt"),
        (11, "the prompt has 11; shorten the prompt"),
        (0, "no tokens"),
    ],
)
def test_does_not_fit(prompt_len: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_length(prompt_len, 10, param="prompt")
