"""The OpenAI client: the usage guide's examples, and the newest client's features.

RTPJAX_CLIENTS has a Python with openai==1.3.9, the version that the guide asks for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest

from tests.client_python import client_python
from tests.server.live_server import LiveServer

GUIDE = Path(__file__).parent / "guide_client.py"


def run_guide(python: str, port: int) -> dict[str, str]:
    done = subprocess.run(
        [python, str(GUIDE)],
        env={**os.environ, "START_PORT": str(port), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_guide(result: dict[str, str]) -> None:
    assert len(result["whole"]) == 24
    assert len(result["streamed"]) == 24
    assert result["code"] == "context_length_exceeded"


def test_guide_with_the_installed_client(server: LiveServer) -> None:
    check_guide(run_guide(sys.executable, server.port))


@pytest.mark.slow
def test_guide_with_the_old_client(server: LiveServer) -> None:
    result = run_guide(client_python("old-openai"), server.port)
    assert result["version"] == "1.3.9"
    check_guide(result)


def test_guide_with_plain_http(server: LiveServer) -> None:
    request = {
        "temperature": 0.0,
        "top_p": 0.1,
        "messages": [{"role": "user", "content": "Who are you?"}],
    }
    response = httpx.post(f"{server.url}/v1/chat/completions", json=request)
    assert response.json()["choices"][0]["message"]["role"] == "assistant"


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def test_stream_with_usage_and_logprobs(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="x",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=2,
        max_completion_tokens=5,
    ) as stream:
        chunks = list(stream)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert chunks[-1].usage.prompt_tokens_details is not None
    entries = [
        entry
        for chunk in chunks[:-1]
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert len(entries) == 5


def test_helper_stream_accumulates(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="x", messages=[{"role": "user", "content": "hi"}], seed=1
    ) as stream:
        final = stream.get_final_completion()
    whole = client.chat.completions.create(
        model="x", messages=[{"role": "user", "content": "hi"}], seed=1
    )
    assert final.choices[0].message.content == whole.choices[0].message.content


def test_completions_and_models(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="x", prompt=["a", "b"], max_tokens=3)
    assert [len(choice.text) for choice in answer.choices] == [3, 3]
    assert client.models.retrieve(client.models.list().data[0].id).owned_by == "rtpjax"


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model="x",
            messages=[{"role": "user", "content": "hi"}],
            tools=[{"type": "function", "function": {"name": "f g"}}],
        )
    assert error.value.param == "tools[0].function.name"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
