"""Whatever the body, the answer is a success or an OpenAI-shaped error, never a 500, and in time.

Some bodies have lists of thousands. A line at the end says how many bodies there were, how late the
latest answer was, and how long `/liveness` took meanwhile; `make nightly` draws
2,000 for each test.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from server.protocol.anthropic_messages import MessagesRequest
from server.protocol.chat import ChatRequest
from server.protocol.completions import CompletionRequest
from server.protocol.raw import RawRequest
from server.protocol.responses import ResponsesRequest
from server.protocol.tokens import DetokenizeRequest, EncodeRequest, TokenizeRequest
from tests.server.live_server import LiveServer

FIELDS = sorted({
    *(*ChatRequest.model_fields, *ChatRequest.others),
    *(*CompletionRequest.model_fields, *CompletionRequest.others),
})  # fmt: skip
NUMBERS = st.one_of(
    st.integers(), st.integers(-3, 20), st.floats(), st.sampled_from([2**31, 2**63, 10**400, -1])
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(FIELDS), st.text(max_size=5)), inner, max_size=4),
    ),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "x"]),
        "content": st.one_of(st.text(max_size=30), JSON),
    },
    optional={"name": JSON, "tool_calls": JSON, "refusal": JSON, "reasoning_content": JSON},
)
FUNCTION = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "g", "h i"])},
    optional={
        "description": st.one_of(st.text(max_size=5), JSON),
        "parameters": st.one_of(JSON, st.fixed_dictionaries({"properties": JSON, "type": JSON})),
    },
)
CALL = st.fixed_dictionaries({"name": JSON, "arguments": st.one_of(st.text(max_size=9), JSON)})
CALLING = st.fixed_dictionaries(
    {"role": st.sampled_from(["assistant", "tool", "function", "user", "observation"])},
    optional={
        "content": st.text(max_size=5),
        "function_call": st.one_of(CALL, JSON),
        "tool_calls": st.lists(st.fixed_dictionaries({"id": JSON, "function": CALL}), max_size=2),
        "tool_call_id": JSON,
    },
)
OPENAI_KEYS = {"message", "type", "param", "code"}
SETTINGS = settings(suppress_health_check=[HealthCheck.too_slow])
# How often the lists of a body are repeated.
FACTORS = st.sampled_from([1] * 9 + [2000])
# An answer takes a tenth of a second and 2 ms a kilobyte at most on a machine with nothing else to
# do (the line at the end says by how much); a busy one is given ten times that.
SLACK = 10.0
PROBE_EVERY_S = 0.02


@dataclasses.dataclass
class Figures:
    """What a run has seen; `worst_ratio` is of an answer's time to what it may take."""

    num_bodies: int = 0
    worst_ratio: float = 0.0
    worst: str = ""
    num_probes: int = 0
    slowest_probe_s: float = 0.0


FIGURES = Figures()


@pytest.fixture(scope="module", autouse=True)
def figures(server: LiveServer, request: pytest.FixtureRequest) -> Iterator[None]:
    """Asks for /liveness all the time, and says at the end how it went."""
    done = threading.Event()

    def probe() -> None:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            while not done.wait(PROBE_EVERY_S):
                started = time.perf_counter()
                client.get("/liveness")
                took = time.perf_counter() - started
                FIGURES.num_probes += 1
                FIGURES.slowest_probe_s = max(FIGURES.slowest_probe_s, took)

    thread = threading.Thread(target=probe)
    thread.start()
    yield
    done.set()
    thread.join()
    f = FIGURES
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(
            f"\nfuzz: {f.num_bodies} bodies; the latest answer took {f.worst_ratio:.2f} of what it "
            f"may ({f.worst}); /liveness took {1000 * f.slowest_probe_s:.0f} ms at most "
            f"({f.num_probes} probes)"
        )


def grown(value: Any, factor: int, depth: int = 2) -> Any:
    """A body whose lists, and those inside of their elements, are repeated."""
    if isinstance(value, dict):
        return {key: grown(part, factor, depth) for key, part in value.items()}
    if isinstance(value, list) and depth:
        inner = [grown(part, min(factor, 3), depth - 1) for part in value]
        return inner * (factor if depth == 2 else min(factor, 3))
    return value


@pytest.fixture(autouse=True)
def is_healthy(server: LiveServer) -> Iterator[None]:
    """After all bodies of a test the server still takes requests."""
    yield
    assert server.client.get("/health").status_code == 200


def check(server: LiveServer, path: str, content: bytes) -> None:
    started = time.perf_counter()
    response = server.client.post(path, content=content)
    ratio = (time.perf_counter() - started) / (0.1 + 0.002 * len(content) / 1000)
    FIGURES.num_bodies += 1
    if ratio > FIGURES.worst_ratio:
        FIGURES.worst_ratio, FIGURES.worst = ratio, f"{path}, {len(content)} bytes"
    assert ratio < SLACK, content[:500]
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        error = response.json()["error"]
        is_anthropic = path.startswith("/v1/messages")
        assert set(error) - {"details"} == ({"message", "type"} if is_anthropic else OPENAI_KEYS)
        assert error["message"]
        assert len(error["message"]) < 500


@SETTINGS
@given(
    messages=st.one_of(st.lists(MESSAGE, max_size=3), JSON),
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3),
    factor=FACTORS,
)
def test_chat(server: LiveServer, messages: Any, fields: dict[str, Any], factor: int) -> None:
    body = {"messages": messages, "max_tokens": 2, **fields}
    check(server, "/v1/chat/completions", json.dumps(grown(body, factor)).encode())


@SETTINGS
@given(
    messages=st.lists(CALLING, min_size=1, max_size=3),
    functions=st.lists(FUNCTION, max_size=2),
    dialect=st.booleans(),
    fields=st.fixed_dictionaries({}, optional={"tool_choice": JSON, "function_call": JSON}),
    factor=FACTORS,
)
def test_calls(
    server: LiveServer,
    messages: list[Any],
    functions: list[Any],
    dialect: bool,
    fields: dict[str, Any],
    factor: int,
) -> None:
    tools = [{"type": "function", "function": function} for function in functions]
    offered = {"functions": functions} if dialect else {"tools": tools}
    messages = [{"role": "user", "content": "x"}, *messages]
    body = {"messages": messages, "max_tokens": 2, **offered, **fields}
    check(server, "/v1/chat/completions", json.dumps(grown(body, factor)).encode())


@SETTINGS
@given(
    prompt=st.one_of(st.text(max_size=20), st.lists(st.integers(-2, 300), max_size=4), JSON),
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3),
    factor=FACTORS,
)
def test_completions(server: LiveServer, prompt: Any, fields: dict[str, Any], factor: int) -> None:
    body = {"prompt": prompt, "max_tokens": 2, **fields}
    check(server, "/v1/completions", json.dumps(grown(body, factor)).encode())


PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "input_text", "tool_result", "tool_use", "image"])},
    optional={"text": st.one_of(st.text(max_size=9), JSON), "content": JSON, "input": JSON},
)
ITEM = st.one_of(
    MESSAGE,
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": st.lists(PART, max_size=3)}
    ),
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(
                ["message", "function_call", "function_call_output", "reasoning"]
            )
        },
        optional={"role": JSON, "content": JSON, "output": JSON, "name": JSON, "call_id": JSON},
    ),
    JSON,
)
INPUT = st.one_of(st.text(max_size=20), st.lists(ITEM, max_size=3), JSON)
OTHERS = {
    "/v1/responses": (ResponsesRequest, "input", {"max_output_tokens": 2}),
    "/v1/messages": (MessagesRequest, "messages", {"max_tokens": 2}),
    "/v1/messages/count_tokens": (MessagesRequest, "messages", {}),
    "/v1/batch/chat/completions": (ChatRequest, "requests", {}),
    "/": (RawRequest, "prompt", {"generate_config": {"max_new_tokens": 2}}),
    "/batch_infer": (RawRequest, "prompt_batch", {"max_new_tokens": 2}),
    "/v1/chat/render": (ChatRequest, "messages", {}),
    "/tokenizer/encode": (EncodeRequest, "prompt", {}),
    "/tokenize": (TokenizeRequest, "prompt", {}),
    "/detokenize": (DetokenizeRequest, "tokens", {}),
}


@pytest.mark.parametrize("path", OTHERS)
@SETTINGS
@given(data=st.data())
def test_other_routes(server: LiveServer, path: str, data: st.DataObject) -> None:
    model, main, always = OTHERS[path]
    names = sorted({*model.model_fields, *model.others, "extra_configs", "tools"})
    fields = data.draw(st.dictionaries(st.sampled_from(names), JSON, max_size=3))
    body = {main: data.draw(INPUT), **always, **fields}
    factor = data.draw(FACTORS)
    check(server, path, json.dumps(grown(body, factor)).encode())


BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "thinking", "tool_use", "tool_result", "function_call"])},
    optional={
        "text": st.text(max_size=5),
        "thinking": st.one_of(st.text(max_size=5), JSON),
        "id": st.sampled_from(["a", "b"]),
        "tool_use_id": st.sampled_from(["a", "b"]),
        "name": st.sampled_from(["f", "g"]),
        "input": st.one_of(st.dictionaries(st.text(max_size=3), JSON, max_size=2), JSON),
        "content": st.one_of(st.text(max_size=5), JSON),
        "is_error": st.booleans(),
    },
)
CALL_ITEM = st.one_of(
    st.fixed_dictionaries(
        {
            "type": st.just("function_call"),
            "call_id": st.sampled_from(["a", "b"]),
            "name": st.sampled_from(["f", "g"]),
            "arguments": st.text(max_size=9),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("function_call_output"),
            "call_id": st.sampled_from(["a", "b"]),
            "output": st.one_of(st.text(max_size=9), JSON),
        }
    ),
    st.fixed_dictionaries({"type": st.just("reasoning"), "content": JSON, "summary": JSON}),
    MESSAGE,
)
CHOICE = st.one_of(
    st.sampled_from(["auto", "none", "required"]),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["auto", "any", "tool", "none", "function", "allowed_tools"])},
        optional={"name": st.sampled_from(["f", "x"]), "mode": JSON, "tools": JSON},
    ),
    JSON,
)


@SETTINGS
@given(
    items=st.lists(CALL_ITEM, max_size=4),
    functions=st.lists(FUNCTION, max_size=2),
    fields=st.fixed_dictionaries({}, optional={"tool_choice": CHOICE, "reasoning": JSON}),
    factor=FACTORS,
)
def test_items_and_tools(
    server: LiveServer,
    items: list[Any],
    functions: list[Any],
    fields: dict[str, Any],
    factor: int,
) -> None:
    tools = [{"type": "function", **function} for function in functions]
    body = {"input": items, "max_output_tokens": 2, "tools": tools, **fields}
    check(server, "/v1/responses", json.dumps(grown(body, factor)).encode())


@SETTINGS
@given(
    turns=st.lists(st.lists(BLOCK, max_size=3), min_size=1, max_size=4),
    functions=st.lists(FUNCTION, max_size=2),
    fields=st.fixed_dictionaries(
        {}, optional={"tool_choice": CHOICE, "thinking": JSON, "output_config": JSON}
    ),
    factor=FACTORS,
)
def test_blocks_and_tools(
    server: LiveServer,
    turns: list[Any],
    functions: list[Any],
    fields: dict[str, Any],
    factor: int,
) -> None:
    tools = [
        {"input_schema": function.pop("parameters", {}), **function}
        for function in map(dict, functions)
    ]
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": blocks}
        for number, blocks in enumerate(turns)
    ]
    body = {"messages": messages, "max_tokens": 2, "tools": tools, **fields}
    check(server, "/v1/messages", json.dumps(grown(body, factor)).encode())


@SETTINGS
@given(content=st.binary(max_size=60))
def test_bytes(server: LiveServer, content: bytes) -> None:
    check(server, "/chat/completions", content)
