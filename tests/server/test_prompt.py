"""Text to token ids, and the context's bound."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from rtpjax.errors import RequestError
from server.chat_template import ChatTemplate
from server.prompt import PromptEncoder, check_lengths
from tests.server.scripted_engine import make_tokenizer


def encoder() -> PromptEncoder:
    tokenizer = make_tokenizer()
    # Some tokenizer.json files have this switched on; a prompt must not be cut silently.
    tokenizer.backend_tokenizer.enable_truncation(5)
    return PromptEncoder(tokenizer, ChatTemplate.from_tokenizer(tokenizer, timeout_s=5))


def test_no_truncation() -> None:
    assert len(encoder().encode_completion("x" * 50).token_ids) == 50


def test_many_at_once() -> None:
    shared = encoder()
    texts = [chr(97 + i % 26) * (i + 1) for i in range(100)]

    with ThreadPoolExecutor(8) as threads:
        encoded = threads.map(shared.encode_completion, texts)
        assert [len(prompt.token_ids) for prompt in encoded] == list(range(1, 101))


@pytest.mark.parametrize(("prompt_len", "max_tokens"), [(9, None), (9, 1), (1, 9)])
def test_fits(prompt_len: int, max_tokens: int | None) -> None:
    check_lengths(prompt_len, max_tokens, 10, param="prompt")


@pytest.mark.parametrize(
    ("prompt_len", "max_tokens", "message"),
    [
        (10, None, "context is 10 tokens, but the prompt has 10; shorten the prompt"),
        (9, 2, r"the prompt has 9 and max_tokens is 2 \(11 together\)"),
        (11, 2, "the prompt has 11; shorten the prompt"),
        (0, 2, "no tokens"),
    ],
)
def test_does_not_fit(prompt_len: int, max_tokens: int | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_lengths(prompt_len, max_tokens, 10, param="prompt")
