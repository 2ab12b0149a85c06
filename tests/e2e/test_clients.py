"""langchain and litellm, each in a Python of its own, against the whole server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.client_python import client_python
from tests.e2e.conftest import Server

pytestmark = pytest.mark.slow

CLIENTS = Path(__file__).parent / "clients"


def run(name: str, server: Server) -> dict[str, Any]:
    """What the client's script found."""
    script = CLIENTS / f"{name}_client.py"
    done = subprocess.run(
        [client_python(name), str(script), server.url],
        env={**os.environ, "PYTHONPATH": "", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_langchain(server: Server) -> None:
    found = run("langchain", server)
    assert found["whole"]
    assert found["streamed"] == found["whole"]
    assert found["usage"][0] == found["usage"][1] > 0
    name, arguments = found["named"]
    assert name == "get_weather"
    assert arguments.keys() == {"city", "unit"}
    assert arguments["unit"] in ("celsius", "fahrenheit")
    for name, arguments in (found["any"], found["any_streamed"]):
        wanted = {"get_weather": {"city", "unit"}, "get_time": {"city"}}
        assert arguments.keys() == wanted[name]
    assert found["any"] == found["any_streamed"]
    assert found["finish_reason"] == "tool_calls"
    assert found["after_the_result"]
    for city in found["cities"].values():
        assert 0 < len(city["name"]) <= 20
        assert 0 <= city["people"] < 10**8
    first, other, again = found["batch"]
    assert first == again != other


def test_litellm(server: Server) -> None:
    found = run("litellm", server)
    assert found["whole"]
    assert found["streamed"] == found["whole"]
    assert found["usage"][0] == found["usage"][1] > 0
    assert found["finish_reason"] == "tool_calls"
    (name, arguments), streamed = found["calls"]
    assert name == "get_weather"
    assert json.loads(arguments).keys() == {"city"}
    assert [name, arguments] == streamed
    if found["json_finish_reason"] == "stop":
        assert isinstance(json.loads(found["json"]), dict)
    assert found["json"].startswith("{")
    assert found["text"].startswith(" Paris")
    assert "top_logprobs" in found["refused"]
    assert found["anthropic"] == found["whole"]
