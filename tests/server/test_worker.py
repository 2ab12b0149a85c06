"""What a worker process prepares is what a thread would have prepared."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtpjax.errors import RequestTimeoutError
from server.config import ServerConfig
from server.context import ModelContext, ServerContext
from server.lanes import SLOW
from server.preparation import SMALL_BYTES
from server.protocol.body import StrictModel
from server.routes import Reply, all_routes, body_of, takes
from server.worker import Worker, WorkerError
from tests.server.live_server import LiveServer, wait_until
from tests.server.scripted_engine import ScriptedEngine
from tests.server.test_disconnect import open_request

MESSAGES = [{"role": "user", "content": "hé"}]
TOOL = {
    "name": "weather",
    "description": "Looks it up",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TOOLS = [{"type": "function", "function": TOOL}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CHAT: list[dict[str, Any]] = [
    {"messages": MESSAGES},
    {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "n": 2},
    {"messages": MESSAGES, "functions": [TOOL], "stream": True},
    {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "return_token_ids": True},
    {"messages": MESSAGES, "aux_info": True, "debug_info": True, "prompt_logprobs": 1},
    {"messages": MESSAGES, "response_format": {"type": "json_object", "schema": SCHEMA}},
    {"messages": MESSAGES, "num_beams": 2, "bad_words": []},
    {"messages": [{"role": "nobody", "content": "x"}]},
    {"messages": [{"role": "user", "content": "x" * 600}]},
]
ANTHROPIC_TOOL = {"name": "weather", "input_schema": TOOL["parameters"]}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": CHAT,
    "/v1/batch/chat/completions": [{"requests": [{"messages": MESSAGES}, {"messages": MESSAGES}]}],
    "/v1/completions": [
        {"prompt": ["ab", "cd"], "n": 2, "logprobs": 2, "echo": True, "bad_words": ["zz"]},
        {"prompt": [1, 2, 3], "guided_regex": "a+", "stream": True},
        {"prompt": [10**6]},
    ],
    "/v1/responses": [
        {"input": "hé", "instructions": "be kind", "metadata": {"a": "b"}},
        {"input": [{"role": "user", "content": "x"}], "stream": True, "reasoning": {}},
        {"input": "x", "tools": [{"type": "function", **TOOL}], "tool_choice": "required"},
    ],
    "/v1/messages": [
        {"messages": MESSAGES, "max_tokens": 5, "system": "be kind", "stop_sequences": ["q"]},
        {"messages": MESSAGES, "max_tokens": 900, "tools": [ANTHROPIC_TOOL], "stream": True},
        {"messages": [], "max_tokens": 5},
    ],
    "/v1/messages/count_tokens": [{"messages": MESSAGES, "tools": [ANTHROPIC_TOOL]}],
    "/": [
        {"prompt": "hé", "generate_config": {"num_beams": 2, "max_new_tokens": 3}},
        {"prompt_batch": ["a", MESSAGES], "yield_generator": True, "return_input_ids": True},
        {"prompt": "abc", "calculate_loss": 2},
    ],
    "/batch_infer": [{"prompt": "hé"}],
    "/v1/chat/render": [{"messages": MESSAGES, "seed": 3}],
    "/tokenizer/encode": [{"prompt": "hé", "return_offsets_mapping": True}],
    "/tokenize": [{"prompt": "hé", "return_token_strs": True}, {"messages": MESSAGES}],
    "/detokenize": [{"tokens": [70, 71]}],
    "/set_log_level": [{"log_level": "WARNING"}],
}
# The same under other paths.
ALIASES = ("/chat/completions", "/completions", "/responses", "/chat/render")
CASES = [(path, body) for path, bodies in BODIES.items() for body in bodies]


def test_every_route_has_a_case() -> None:
    taking = {path for _, path, handler, *_ in all_routes() if body_of(handler) is not None}
    assert taking == {*BODIES, *ALIASES}


@pytest.mark.parametrize(("path", "body"), CASES, ids=[path for path, _ in CASES])
def test_same_answer(server: LiveServer, path: str, body: dict[str, Any]) -> None:
    level = logging.getLogger().level
    try:
        small = json.dumps(body).encode()
        large = small + b" " * SMALL_BYTES
        headers = {"X-Request-ID": "same"}
        answers = [server.client.post(path, content=c, headers=headers) for c in (small, large)]
    finally:
        logging.getLogger().setLevel(level)
    assert answers[0].status_code == answers[1].status_code
    assert comparable(answers[0].text) == comparable(answers[1].text)


def comparable(text: str) -> list[Any]:
    """The JSON objects of an answer, without what differs each time."""
    lines = [line.removeprefix("data:") for line in text.splitlines() if "{" in line]
    return [_without_times(json.loads(line)) for line in lines]


def _without_times(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_times(each) for each in value]
    if not isinstance(value, dict):
        return value
    names = ("id", "item_id", "call_id", "created", "created_at", "completed_at")
    return {
        key: _without_times(each)
        for key, each in value.items()
        if key not in names and not key.endswith("_time")
    }


class Turn:
    """Somebody waits for long enough."""

    def __init__(self, timeout_s: float = 60):
        self.deadline = time.monotonic() + timeout_s
        self.is_wanted = True


def prepare_of(route: str) -> Any:
    """What prepares a route's requests."""
    handlers: dict[str, Any] = {path: handler for _, path, handler, *_ in all_routes()}
    return (handlers | {"broken": broken, "talkative": talkative})[route].__wrapped__


@takes(StrictModel)
def broken(body: bytes, context: ModelContext) -> Reply:
    """A route with a defect."""
    raise KeyError("defect")


@takes(StrictModel)
def talkative(body: bytes, context: ModelContext) -> Reply:
    """A route that logs."""
    logging.getLogger("talkative").warning("body of %d bytes", len(body))
    logging.getLogger("talkative").debug("not asked for")
    return Reply({"modules": [name for name in ("jax", "torch") if name in sys.modules]})


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(ServerContext(ScriptedEngine(), ServerConfig()))
    yield worker
    worker.close()


def test_comes_back_after_its_end(worker: Worker) -> None:
    prepare, body = prepare_of("/tokenize"), b'{"prompt": "a"}'
    reply = worker.call(prepare, body, SLOW, Turn())
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{worker.pid}").exists())
    assert worker.call(prepare, body, SLOW, Turn()).content == reply.content


def test_defects_are_told_with_their_traceback(worker: Worker) -> None:
    with pytest.raises(WorkerError, match="KeyError: 'defect'"):
        worker.call(prepare_of("broken"), b"{}", SLOW, Turn())


def test_log_lines_arrive(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        reply = worker.call(prepare_of("talkative"), b"{}", SLOW, Turn())
    assert caplog.record_tuples == [("talkative", logging.WARNING, "body of 2 bytes")]
    # Nothing that takes a device or a second to import.
    assert reply.content == b'{"modules":[]}'


def test_nobody_waits_any_more(worker: Worker) -> None:
    turn = Turn()
    turn.is_wanted = False
    body = b'{"prompt": "%b"}' % (b"x" * 4_000_000)
    with pytest.raises(RequestTimeoutError):
        worker.call(prepare_of("/tokenize"), body, SLOW, turn)


ENDLESS = (
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)


def test_what_takes_too_long_is_ended(engine: ScriptedEngine) -> None:
    settings = {"allow_user_template": True, "prepare_timeout_s": 4}
    with LiveServer(engine, **settings) as server:
        started = time.monotonic()
        response = server.chat("x", user_template=ENDLESS)
        assert response.status_code == 504
        assert "took longer than 4 s; send a smaller one" in response.text
        assert response.headers["x-should-retry"] == "false"
        assert time.monotonic() - started < 7
        assert server.chat("x", user_template="{{ messages[0].content }}").status_code == 200


def test_templates_of_callers_hold_up_nobody(engine: ScriptedEngine) -> None:
    with LiveServer(engine, allow_user_template=True) as server:
        socks = [open_request(server, user_template=ENDLESS) for _ in range(8)]
        for _ in range(10):
            started = time.monotonic()
            assert server.chat("x", max_tokens=1).status_code == 200
            assert time.monotonic() - started < 2
        for sock in socks:
            sock.close()
        # Those that waited are gone, and the one that ran has been ended.
        started = time.monotonic()
        assert server.chat("x", user_template="{{ messages[0].content }}").status_code == 200
        assert time.monotonic() - started < 15  # of 8 times 5 s
