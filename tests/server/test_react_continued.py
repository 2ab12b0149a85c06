"""A last message that is continued, with functions in the ReAct format: in the midst of a call."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.live_server import LiveServer
from tests.server.speaking_engine import SpeakingEngine

WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
CALL = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
ASK = {"role": "user", "content": "How is it?"}
CALLED = {"role": "assistant", "content": "Thought: I look.", "function_call": CALL}
RESULT = {"role": "function", "name": "get_weather", "content": "22"}
CALL_TEXT = 'Thought: I look.\nAction: get_weather\nAction Input: {"city": "Paris"}'


def opened(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "partial": True}


@pytest.mark.parametrize(
    ("messages", "end"),
    [
        ([ASK, opened("Thought: I ")], "assistant\nThought: I "),
        ([ASK, CALLED, RESULT, opened("Thought: now ")],
         f"assistant\n{CALL_TEXT}\nObservation: 22\nThought: now "),
        ([ASK, CALLED | {"partial": True}], f"assistant\n{CALL_TEXT}"),
    ],
)  # fmt: skip
def test_the_prompt_ends_where_the_message_does(messages: list[Any], end: str) -> None:
    engine = SpeakingEngine("x")
    with LiveServer(engine, model_type="qwen2") as server:
        body = {"messages": messages, "functions": [WEATHER]}
        assert server.client.post("/v1/chat/completions", json=body).status_code == 200
    assert engine.prompt().endswith(f"Question: How is it?<|im_end|>\n<|im_start|>{end}")


def test_a_call_that_follows_is_read() -> None:
    engine = SpeakingEngine('look it up.\nAction: get_weather\nAction Input: {"city": "Rome"}\n')
    with LiveServer(engine, model_type="qwen2") as server:
        body = {"messages": [ASK, opened("Thought: I ")], "functions": [WEATHER]}
        answer = server.client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert answer["finish_reason"] == "function_call"
    assert answer["message"]["content"] == "look it up."
    assert answer["message"]["function_call"] == CALL | {"arguments": '{"city": "Rome"}'}


def test_a_result_is_answered_in_the_turn_of_its_call_whatever_opens_turns() -> None:
    engine = SpeakingEngine("x")
    with LiveServer(engine, model_type="qwen2") as server:
        body = {"messages": [ASK, CALLED, RESULT], "functions": [WEATHER]}
        body |= {"add_generation_prompt": False}
        assert server.client.post("/v1/chat/completions", json=body).status_code == 200
    assert engine.prompt().endswith(f"assistant\n{CALL_TEXT}\nObservation: 22\nThought:")
