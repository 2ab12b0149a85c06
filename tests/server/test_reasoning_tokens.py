"""Tokens of reasoning are counted exactly, however the text is cut into tokens and outputs."""

from __future__ import annotations

import re
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from server.reasoning_parsers import reasoning_formats
from server.reasoning_tokens import ReasoningCounter
from tests.server.live_server import LiveServer
from tests.server.speaking_engine import SpeakingEngine

WORDS = st.sampled_from(
    ["a", "é", " ", "\n", "\n\n", "<", "</", "think", ">", "<|", "|>", "🦙", "x y"]
)
TEXTS = st.lists(WORDS, max_size=6).map("".join)
FORMATS = reasoning_formats()


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, bool, str]:
    """The name of a format, whether the prompt opens the reasoning, and an answer."""
    name = draw(st.sampled_from(sorted(FORMATS)))
    grammar = FORMATS[name].grammar
    is_open = draw(st.booleans())
    marks = st.sampled_from([grammar.opens, *grammar.ends])
    pieces = draw(st.lists(st.one_of(TEXTS, marks), max_size=8))
    return name, is_open, "".join(pieces)


def expected(name: str, is_open: bool, text: bytes, tokens: list[bytes]) -> int:
    """Counted from the whole text: where the reasoning is, and which tokens touch it."""
    grammar = FORMATS[name].grammar
    opens = re.escape(grammar.opens.encode())
    ends = b"|".join(re.escape(end.encode()) for end in grammar.ends)
    spans: list[tuple[int, int]] = []
    at = 0
    if not is_open:
        found = re.compile(opens if grammar.reopens else rb"\s*" + opens)
        begin = found.search(text) if grammar.reopens else found.match(text)
        at = -1 if begin is None else begin.end()
    elif not grammar.reopens:
        repeated = re.match(rb"\s*" + opens, text)
        at = repeated.end() if repeated else 0
    while at >= 0:
        end = re.compile(ends).search(text, at)
        spans.append((at, end.start() if end else len(text)))
        following = re.compile(opens).search(text, end.start()) if end and grammar.reopens else None
        at = following.end() if following else -1
    count, start = 0, 0
    for token in tokens:
        end_at = start + len(token)
        count += any(start < b and end_at > a and token for a, b in spans)
        start = end_at
    return count


@given(answer=answers(), data=st.data())
def test_counts_tokens_between_the_marks(
    answer: tuple[str, bool, str], data: st.DataObject
) -> None:
    name, is_open, written = answer
    text = written.encode()
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12).map(sorted))
    tokens = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    counter = ReasoningCounter(FORMATS[name].grammar, tokens.__getitem__, is_open=is_open)
    ids = list(range(len(tokens)))
    middle = data.draw(st.integers(0, len(ids)))
    counter.see(ids[:middle])
    counter.see(ids[middle:])
    assert counter.num_tokens == expected(name, is_open, text, tokens)


ANSWERS = [
    ("<think>abc</think>ok", "", 3),
    ("<think>\nabc\n</think>\n\nok", "", 5),  # white space between the marks counts
    ("abc</think>ok", "<think>", 3),
    ("<think>abc</think>ok", "<think>", 3),  # the mark once more
    ("ok", "", 0),
    ("<think>cut of", "", 6),
    ("<think>🦙</think>ok", "", 4),  # tokens of one byte each
]


@pytest.mark.parametrize("size", [1, 5, 99])
@pytest.mark.parametrize(("text", "opened", "num"), ANSWERS)
def test_every_api_and_stream_has_the_count(text: str, opened: str, num: int, size: int) -> None:
    template = "{{ messages[-1].content }}{# <think></think> #}" + opened
    engine = SpeakingEngine(text, template=template)
    engine.size = size
    messages = [{"role": "user", "content": "hi"}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": messages},
        "/v1/responses": {"input": "hi"},
        "/v1/messages": {"messages": messages, "max_tokens": 99},
    }
    with LiveServer(engine) as server:
        for path, body in bodies.items():
            usage = server.client.post(path, json=body).json()["usage"]
            details = [v for k, v in usage.items() if k.endswith("put_tokens_details")]
            details += [v for k, v in usage.items() if k == "completion_tokens_details"]
            assert {k: v for k, v in details[-1].items() if k != "cached_tokens"} in (
                {"reasoning_tokens": num},
                {"thinking_tokens": num},
            )
            streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
            if "messages" in path:
                del streamed["stream_options"]
            if "responses" in path:
                streamed["stream_options"] = {}
            last = server.client.post(path, json=streamed).text
            assert re.findall(r'"(?:reasoning|thinking)_tokens":(\d+)', last)[-1] == str(num)
        several = server.chat(n=3).json()["usage"]["completion_tokens_details"]
        assert several == {"reasoning_tokens": 3 * num}
        assert (
            "completion_tokens_details"
            not in server.client.post("/v1/completions", json={"prompt": "x"}).json()["usage"]
        )
