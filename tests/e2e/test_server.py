"""The whole thing as a user meets it: a process, HTTP, the openai client, the embedded model."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest
import requests
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionUserMessageParam

from tests.e2e.conftest import ROOT, SMALL, Server

GREEDY = json.loads((Path(__file__).parent / "greedy.json").read_text())


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/", api_key="none", max_retries=0)


def ask(server: Server, **fields) -> requests.Response:
    body = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0} | fields
    return requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)


def wait_for(condition, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("case", GREEDY, ids=lambda c: c["prompt"][:20])
def test_greedy_text_is_that_of_transformers(server, case):
    """greedy.json is transformers' own output in float32 (tests/e2e/make_greedy.py)."""
    body = ask(
        server,
        messages=[{"role": "user", "content": case["prompt"]}],
        max_tokens=case["max_tokens"],
    ).json()
    assert body["choices"][0]["message"]["content"] == case["text"]
    assert body["usage"]["prompt_tokens"] == case["prompt_tokens"]
    assert body["usage"]["completion_tokens"] == case["completion_tokens"]
    assert body["choices"][0]["finish_reason"] == case["finish_reason"]


def test_the_guide(server, client):
    """Two turns of the usage guide, the first answer appended as the client gave it."""
    messages: list[ChatCompletionMessageParam] = [
        ChatCompletionUserMessageParam(content="Who are you?", role="user")
    ]
    first = client.chat.completions.create(model="whatever", messages=messages, max_tokens=20)
    assert first.choices[0].message.content
    messages.append(first.choices[0].message)  # type: ignore[arg-type]
    question = "torch中的tensor和tensorflow有什么不同？"
    messages.append(ChatCompletionUserMessageParam(content=question, role="user"))
    chunks = list(
        client.chat.completions.create(
            model="whatever", messages=messages, max_tokens=20, stream=True
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_streamed_and_whole_answers_are_the_same(server):
    whole = ask(server, max_tokens=30, seed=5, temperature=0.9).json()
    stream = ask(server, max_tokens=30, seed=5, temperature=0.9, stream=True)
    lines = [line for line in stream.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(e["choices"][0]["delta"].get("content") or "" for e in events)
    assert text == whole["choices"][0]["message"]["content"]


def test_a_shared_prefix_is_cached(server):
    text = " ".join(f"item {i}" for i in range(300, 500))
    messages = [{"role": "user", "content": f"{text}. What is the first?"}]
    first = ask(server, messages=messages, max_tokens=1).json()["usage"]
    second = ask(server, messages=messages, max_tokens=1).json()["usage"]
    page = 32
    assert second["prompt_tokens"] > 600
    assert first["prompt_tokens_details"]["cached_tokens"] < page * 2
    expected = (second["prompt_tokens"] - 1) // page * page
    assert second["prompt_tokens_details"]["cached_tokens"] == expected


def test_a_client_that_leaves_frees_its_pages(server):
    body = json.dumps(
        {"messages": [{"role": "user", "content": "Count."}], "stream": True, "ignore_eos": True}
    ).encode()
    host, port = server.url.removeprefix("http://").split(":")
    assert wait_for(lambda: server.metric("rtpjax_running") == 0)
    with socket.create_connection((host, int(port))) as connection:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        assert b"200 OK" in connection.recv(4096)
        assert wait_for(lambda: server.metric("rtpjax_running") == 1)
    assert wait_for(lambda: server.metric("rtpjax_running") == 0)
    assert server.metric("rtpjax_page_usage_ratio") == 0


def test_more_requests_than_run_at_once_all_finish_alike(server):
    alone = ask(server, max_tokens=12).json()["choices"][0]["message"]["content"]
    answers: list[str] = []

    def one() -> None:
        answers.append(ask(server, max_tokens=12).json()["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=one) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [alone] * 12


BAD = [
    ({"temperature": 9}, "temperature"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"n": 1000}, "n"),
    ({"messages": []}, "messages"),
    ({"stop": ["x"] * 99}, "stop"),
    ({"messages": [{"role": "user", "content": "x " * 3000}]}, "messages"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda x: str(x)[:30])
def test_bad_input_is_a_400_and_the_server_goes_on(server, fields, param):
    response = ask(server, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)
    assert ask(server, max_tokens=1).status_code == 200


def test_a_prompt_too_long_says_both_lengths(server):
    messages = [{"role": "user", "content": "x " * 3000}]
    error = ask(server, messages=messages).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert SMALL["MAX_SEQ_LEN"] in error["message"]
    assert any(int(number) > 3000 for number in re.findall(r"\d+", error["message"]))


def test_nothing_was_compiled_after_the_start(server):
    ask(server, max_tokens=3, temperature=1, top_p=0.5, logprobs=True, top_logprobs=3)
    ask(server, max_tokens=3, frequency_penalty=1, logit_bias={"5": -100}, min_tokens=2)
    assert server.metric("rtpjax_recompiles_total") == 0


def test_a_port_in_use_is_said_at_once(model_path, server):
    port = server.url.rpartition(":")[2]
    environment = {**os.environ, "START_PORT": port, "START_HOST": "127.0.0.1"}
    environment |= {"PYTHONPATH": str(ROOT), "CHECKPOINT_PATH": str(model_path)}
    command = [sys.executable, "-m", "rtpjax.start_server"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "START_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.processes
def test_sigterm_lets_running_answers_end(model_path, cache_dir, tmp_path):
    """Its programs are those of the shared server, so they come from the compile cache."""
    own = Server(tmp_path / "log", CHECKPOINT_PATH=str(model_path), ACT_TYPE="FP32", **SMALL)
    own.wait_ready()
    answers: list[requests.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(ask(own, max_tokens=60, ignore_eos=True))
    )
    asking.start()
    assert wait_for(lambda: own.metric("rtpjax_running") == 1)
    assert own.stop() == 0
    asking.join()
    assert answers[0].status_code == 200
    assert answers[0].json()["usage"]["completion_tokens"] == 60
