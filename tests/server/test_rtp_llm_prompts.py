"""Prompts and answers that RTP-LLM makes for the same requests, to the byte.

Its Qwen renderer was run on these histories, and its own tests have the answer in token ids.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.answer_parser import AnswerParser
from server.chat_template import CHATML, ChatTemplate
from server.function_calls.support import CallSupport
from server.parsing.events import fold
from server.protocol.chat_messages import checked_messages
from server.protocol.tools import call_options
from tests.server.npm_tokenizers import npm_tokenizer

WEATHER = {
    "name": "get_weather",
    "description": "天气 of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
BEGIN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "Answer the following questions as best you can. You have access to the following APIs:\n\n"
    "get_weather: Call this tool to interact with the get_weather API. What is the get_weather API "
    "useful for? 天气 of a city. Parameters: "
    '{"type": "object", "properties": {"city": {"type": "string"}}}\n\n'
    "Use the following format:\n\n"
    "Question: the input question you must answer\n"
    "Thought: you should always think about what to do\n"
    "Action: the action to take, should be one of [get_weather]\n"
    "Action Input: the input to the action\n"
    "Observation: the result of the action\n"
    "... (this Thought/Action/Action Input/Observation can be repeated zero or more times)\n"
    "Thought: I now know the final answer\n"
    "Final Answer: the final answer to the original input question\n\n"
    "Begin!\n\nQuestion: "
)
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
ARGUMENTS = '{"city": "杭州"}'


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def call(thought: str | None) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": ARGUMENTS}
    return {"role": "assistant", "content": thought, "function_call": function}


def result(text: str) -> dict[str, Any]:
    return {"role": "function", "name": "get_weather", "content": text}


def called(thought: str, observed: str) -> str:
    head = f"Thought: {thought}\nAction: get_weather\nAction Input: {ARGUMENTS}"
    return f"{head}\nObservation: {observed}"


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([user("天气?")], f"{BEGIN}天气?{ASSISTANT}"),
        ([user("\n  Hi \n")], f"{BEGIN}  Hi{ASSISTANT}"),
        (
            [user("Hi"), call("look"), result("\n22\n")],
            f"{BEGIN}Hi{ASSISTANT}{called('look', '22')}\nThought:",
        ),
        (
            [user("Hi"), call(None), result("22")],
            f"{BEGIN}Hi{ASSISTANT}{called('', '22')}\nThought:",
        ),
        (
            [user("Hi"), call("Thought: a"), result("22"), call("b\n"), result("23")],
            f"{BEGIN}Hi{ASSISTANT}{called('a', '22')}\n{called('b', '23')}\nThought:",
        ),
    ],
)
def test_react_prompts_are_those_of_rtp_llm(messages: list[Any], prompt: str) -> None:
    support = CallSupport(ChatTemplate(CHATML, {}, timeout_s=5), model_type="qwen")
    chosen = call_options(
        tools=None, tool_choice=None, functions=[WEATHER], function_call=None, is_parallel=True
    )
    assert support.render(checked_messages(messages), chosen, {}) == prompt


def test_a_react_answer_is_read_as_by_rtp_llm() -> None:
    support = CallSupport(ChatTemplate(CHATML, {}, timeout_s=5), model_type="qwen")
    chosen = call_options(
        tools=None, tool_choice=None, functions=[WEATHER], function_call=None, is_parallel=True
    )
    syntax = support.syntax(chosen, "")
    assert syntax is not None
    parser = AnswerParser(syntax)
    text = (
        "\nThought: 我可以使用 get_current_weather API。\nAction: get_current_weather\n"
        'Action Input: {"location": "洛杉矶, 美国", "unit": "fahrenheit"}'
    )
    message = fold(parser.feed(text) + parser.finish())
    assert message.content.strip() == "Thought: 我可以使用 get_current_weather API。"
    [made] = message.calls
    assert made.name == "get_current_weather"
    assert made.arguments == '{"location": "洛杉矶, 美国", "unit": "fahrenheit"}'


TOOL = {"type": "function", "function": WEATHER}
# Qwen 3's template by RTP-LLM: calls as JSON on one line, neighbouring results in one user turn.
QWEN3 = (
    "<|im_start|>system\nBe brief.\n\n# Tools\n\n"
    "You may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    f"{json.dumps(TOOL, ensure_ascii=False)}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "杭州"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "杭州"}}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\n<tool_response>\n22\n</tool_response>\n<tool_response>\n23\n"
    "</tool_response><|im_end|>\n<|im_start|>assistant\n"
)


@pytest.mark.slow
def test_qwen3_prompts_are_those_of_rtp_llm() -> None:
    function = {"name": "get_weather", "arguments": ARGUMENTS}
    calls = [{"id": f"call_{i}", "type": "function", "function": function} for i in (1, 2)]
    messages = [
        {"role": "system", "content": "Be brief."},
        user("Hi"),
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "22"},
        {"role": "tool", "tool_call_id": "call_2", "content": "23"},
    ]
    support = CallSupport(ChatTemplate.from_tokenizer(npm_tokenizer("qwen3"), timeout_s=5))
    chosen = call_options(
        tools=[TOOL], tool_choice=None, functions=None, function_call=None, is_parallel=True
    )
    assert support.render(checked_messages(messages), chosen, {}) == QWEN3
