"""Function calls through the whole server: both dialects, streamed and whole, there and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from server.answer_parser import AnswerParser
from server.chat_template import ChatTemplate
from server.function_calls import CallOptions, Function
from server.function_calls.history import template_messages
from server.function_calls.schema import as_schema
from server.function_calls.support import CallSupport
from server.parsing.events import fold
from server.protocol.chat_messages import checked_messages
from tests.server.live_server import LiveServer
from tests.server.speaking_engine import TOOL_TEMPLATE, SpeakingEngine

WEATHER = {
    "name": "get_current_weather",
    "description": "Get the current weather in a given location.",
    "parameters": {
        "type": "object",
        "properties": {
            "location": {
                "type": "string",
                "description": "The city and state, e.g. San Francisco, CA",
            },
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        "required": ["location"],
    },
}
IMAGE = {
    "name": "image_gen",
    "description": "Format the arguments as a JSON object.",
    "parameters": {
        "type": "object",
        "properties": [
            {
                "name": "prompt",
                "description": "English keywords",
                "required": True,
                "schema": {"type": "string"},
            }
        ],
    },
}
TOOLS = [{"type": "function", "function": WEATHER}]
ASK = {"role": "user", "content": "What's the weather like in Yuhang District, Hangzhou?"}
ARGUMENTS = '{"location": "杭州 \\"Yuhang\\""}'
HERMES = (
    f'I look.\n<tool_call>\n{{"name": "get_current_weather", "arguments": {ARGUMENTS}}}\n'
    '</tool_call>\n<tool_call>\n{"name": "get_current_weather", "arguments": {}}\n</tool_call>'
)
REACT = f"Thought: I look.\nAction: get_current_weather\nAction Input: {ARGUMENTS}\n"


@pytest.fixture(scope="module")
def tool_engine() -> SpeakingEngine:
    return SpeakingEngine(template=TOOL_TEMPLATE)


@pytest.fixture(scope="module")
def tool_server(tool_engine: SpeakingEngine) -> Iterator[LiveServer]:
    with LiveServer(tool_engine) as running:
        yield running


@pytest.fixture(scope="module")
def plain_engine() -> SpeakingEngine:
    return SpeakingEngine()


@pytest.fixture(scope="module")
def plain_server(plain_engine: SpeakingEngine) -> Iterator[LiveServer]:
    with LiveServer(plain_engine) as running:
        yield running


@pytest.fixture(scope="module")
def react_engine() -> SpeakingEngine:
    return SpeakingEngine()


@pytest.fixture(scope="module")
def react_server(react_engine: SpeakingEngine) -> Iterator[LiveServer]:
    with LiveServer(react_engine, model_type="qwen2") as running:
        yield running


def post(server: LiveServer, messages: list[Any], **fields: Any) -> dict[str, Any]:
    body = {"messages": messages, **fields}
    response = server.client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def stream(server: LiveServer, messages: list[Any], **fields: Any) -> list[dict[str, Any]]:
    body = {"messages": messages, "stream": True, **fields}
    response = server.client.post("/v1/chat/completions", json=body)
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line)["choices"][0] for line in lines[:-1]]


def refused(server: LiveServer, messages: list[Any], **fields: Any) -> tuple[str, str]:
    response = server.client.post("/v1/chat/completions", json={"messages": messages, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["param"], error["message"]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_tools_whole_and_streamed(
    tool_server: LiveServer, tool_engine: SpeakingEngine, size: int
) -> None:
    tool_engine.answer, tool_engine.size = HERMES, size
    choice = post(tool_server, [ASK], tools=TOOLS)
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] == "I look."
    functions = [call["function"] for call in message["tool_calls"]]
    assert [f["arguments"] for f in functions] == [ARGUMENTS, "{}"]
    assert len({call["id"] for call in message["tool_calls"]}) == 2

    chunks = stream(tool_server, [ASK], tools=TOOLS)
    assert [c["finish_reason"] for c in chunks if c["finish_reason"]] == ["tool_calls"]
    assert chunks[-1]["delta"] == {}
    content = "".join(c["delta"].get("content") or "" for c in chunks)
    assert content == message["content"]
    entries = [entry for c in chunks for entry in c["delta"].get("tool_calls", [])]
    for index in (0, 1):
        first, *rest = [entry for entry in entries if entry["index"] == index]
        assert first.pop("id").startswith("call_")
        assert first == {
            "index": index,
            "type": "function",
            "function": {"name": "get_current_weather", "arguments": ""},
        }
        assert all(entry.keys() == {"index", "function"} for entry in rest)
        joined = "".join(entry["function"]["arguments"] for entry in rest)
        assert joined == functions[index]["arguments"]


@pytest.mark.parametrize("size", [1, 1000])
def test_functions_whole_and_streamed(
    tool_server: LiveServer, tool_engine: SpeakingEngine, size: int
) -> None:
    """The legacy dialect has room for one call."""
    tool_engine.answer, tool_engine.size = HERMES, size
    choice = post(tool_server, [ASK], functions=[WEATHER])
    assert choice["finish_reason"] == "function_call"
    assert choice["message"] == {
        "role": "assistant",
        "content": "I look.",
        "function_call": {"name": "get_current_weather", "arguments": ARGUMENTS},
    }
    changes = [c["delta"] for c in stream(tool_server, [ASK], functions=[WEATHER])]
    calls = [change["function_call"] for change in changes if "function_call" in change]
    assert calls[0] == {"name": "get_current_weather", "arguments": ""}
    assert "".join(call["arguments"] for call in calls) == ARGUMENTS


def test_without_tools_a_mark_is_text(tool_server: LiveServer, tool_engine: SpeakingEngine) -> None:
    tool_engine.answer = HERMES
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = post(tool_server, [ASK], **fields)
        assert choice["message"]["content"] == HERMES
        assert choice["finish_reason"] == "stop"
        assert "<tools>" not in tool_engine.prompt()


def test_content_is_null_beside_calls_alone(
    tool_server: LiveServer, tool_engine: SpeakingEngine
) -> None:
    tool_engine.answer = HERMES.removeprefix("I look.\n")
    assert post(tool_server, [ASK], tools=TOOLS)["message"]["content"] is None


def test_one_call_where_parallel_ones_are_refused(
    tool_server: LiveServer, tool_engine: SpeakingEngine
) -> None:
    tool_engine.answer = HERMES
    choice = post(tool_server, [ASK], tools=TOOLS, parallel_tool_calls=False)
    assert len(choice["message"]["tool_calls"]) == 1


def test_length_stays_length(tool_server: LiveServer, tool_engine: SpeakingEngine) -> None:
    tool_engine.answer, tool_engine.end = HERMES[:80], "length"
    choice = post(tool_server, [ASK], tools=TOOLS)
    tool_engine.end = "stop"
    assert choice["finish_reason"] == "length"
    assert ARGUMENTS.startswith(choice["message"]["tool_calls"][0]["function"]["arguments"])


def test_a_template_gets_tools_with_schemas(
    tool_server: LiveServer, tool_engine: SpeakingEngine
) -> None:
    for fields in ({"functions": [IMAGE]}, {"tools": [{"type": "function", "function": IMAGE}]}):
        post(tool_server, [ASK], **fields)
        line = tool_engine.prompt().removeprefix("<tools>").split("\n")[0]
        assert json.loads(line) == {
            "type": "function",
            "function": {
                **IMAGE,
                "parameters": {
                    "type": "object",
                    "properties": {"prompt": {"description": "English keywords", "type": "string"}},
                    "required": ["prompt"],
                },
            },
        }


def test_tool_messages_reach_the_template(
    tool_server: LiveServer, tool_engine: SpeakingEngine
) -> None:
    tool_engine.answer = HERMES
    message = post(tool_server, [ASK], tools=TOOLS)["message"]
    ids = [call["id"] for call in message["tool_calls"]]
    results = [{"role": "tool", "tool_call_id": i, "content": f"<{i}>"} for i in reversed(ids)]
    post(tool_server, [ASK, message, *results], tools=TOOLS)
    prompt = tool_engine.prompt()
    assert f"I look.<tool_call>{ids[0]} get_current_weather {ARGUMENTS}</tool_call>" in prompt
    assert f"<|im_start|>tool\n<{ids[1]}> of get_current_weather {ids[1]}<|im_end|>" in prompt


def test_function_messages_reach_the_template(
    tool_server: LiveServer, tool_engine: SpeakingEngine
) -> None:
    tool_engine.answer = HERMES
    message = post(tool_server, [ASK], functions=[WEATHER])["message"]
    for role in ("function", "observation"):
        result = {"role": role, "name": "get_current_weather", "content": "22"}
        post(tool_server, [ASK, message, result], functions=[WEATHER])
        assert "tool\n22 of get_current_weather call00001<|im_end|>" in tool_engine.prompt()


def test_broken_arguments_in_the_history(
    tool_server: LiveServer, tool_engine: SpeakingEngine
) -> None:
    call = {"name": "get_current_weather", "arguments": '{"location": '}
    post(tool_server, [ASK, {"role": "assistant", "function_call": call}, ASK], tools=TOOLS)
    assert 'get_current_weather {"location": </tool_call>' in tool_engine.prompt()


def test_templates_without_tools_get_a_system_text(
    plain_server: LiveServer, plain_engine: SpeakingEngine
) -> None:
    plain_engine.answer = HERMES
    choice = post(plain_server, [{"role": "system", "content": "Be brief."}, ASK], tools=TOOLS)
    assert choice["finish_reason"] == "tool_calls"
    prompt = plain_engine.prompt()
    assert prompt.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call")
    assert f"<tools>\n{json.dumps(TOOLS[0])}\n</tools>" in prompt
    message = choice["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": str(number)}
        for number, call in enumerate(message["tool_calls"])
    ]
    post(plain_server, [ASK, message, *results], tools=TOOLS)
    turns = plain_engine.prompt().split("<|im_start|>")
    assert turns[-3] == f"assistant\n{HERMES}<|im_end|>\n"
    assert turns[-2] == (
        "user\n<tool_response>\n0\n</tool_response>\n<tool_response>\n1\n</tool_response>"
        "<|im_end|>\n"
    )


def test_a_template_without_a_system_role() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m.content }}]{% endfor %}"
    )
    engine = SpeakingEngine("x", template=source)
    with LiveServer(engine) as server:
        post(server, [ASK], tools=TOOLS)
    assert engine.prompt().startswith("[# Tools")
    assert engine.prompt().endswith(f"\n\n{ASK['content']}]")


SYSTEM = "<|im_start|>system\nBe brief.<|im_end|>\n"
INSTRUCTION = (
    "Answer the following questions as best you can. You have access to the following APIs:\n\n"
    "get_current_weather: Call this tool to interact with the get_current_weather API. What is the "
    "get_current_weather API useful for? Get the current weather in a given location. Parameters: "
    '{"type": "object", "properties": {"location": {"type": "string", "description": "The city '
    'and state, e.g. San Francisco, CA"}, "unit": {"type": "string", "enum": ["celsius", '
    '"fahrenheit"]}}, "required": ["location"]}\n\n'
    "image_gen: Call this tool to interact with the image_gen API. What is the image_gen API "
    "useful for? Format the arguments as a JSON object. Parameters: "
    '{"type": "object", "properties": [{"name": "prompt", "description": "English keywords", '
    '"required": true, "schema": {"type": "string"}}]}\n\n'
    "Use the following format:\n\n"
    "Question: the input question you must answer\n"
    "Thought: you should always think about what to do\n"
    "Action: the action to take, should be one of [get_current_weather, image_gen]\n"
    "Action Input: the input to the action\n"
    "Observation: the result of the action\n"
    "... (this Thought/Action/Action Input/Observation can be repeated zero or more times)\n"
    "Thought: I now know the final answer\n"
    "Final Answer: the final answer to the original input question\n\n"
    "Begin!\n\n"
    "Question: What's the weather like in Yuhang District, Hangzhou?"
)
BRIEF = {"role": "system", "content": "Be brief."}
CALL = {
    "role": "assistant",
    "content": "Thought: I look.",
    "function_call": {"name": "get_current_weather", "arguments": ARGUMENTS},
}
CALL_TEXT = f"Thought: I look.\nAction: get_current_weather\nAction Input: {ARGUMENTS}"
RESULT = {"role": "function", "name": "get_current_weather", "content": "22 度"}


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        pytest.param(
            [BRIEF, ASK],
            f"{SYSTEM}<|im_start|>user\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n",
            id="question",
        ),
        pytest.param(
            [BRIEF, ASK, CALL, RESULT],
            f"{SYSTEM}<|im_start|>user\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
            f"{CALL_TEXT}\nObservation: 22 度\nThought:",
            id="result",
        ),
        pytest.param(
            [BRIEF, ASK, {**CALL, "content": "I look."}, RESULT, {**CALL, "content": None}, RESULT],
            f"{SYSTEM}<|im_start|>user\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
            f"{CALL_TEXT}\nObservation: 22 度\n"
            f"Thought: \n{CALL_TEXT.removeprefix('Thought: I look.').lstrip()}"
            "\nObservation: 22 度\nThought:",
            id="two results",
        ),
        pytest.param(
            [
                BRIEF,
                {"role": "user", "content": "Hi"},
                CALL,
                RESULT,
                {"role": "assistant", "content": "Warm."},
                ASK,
            ],
            f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{CALL_TEXT}"
            "\nObservation: 22 度\nThought: I now know the final answer.\nFinal Answer: Warm."
            f"<|im_end|>\n<|im_start|>user\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n",
            id="second question",
        ),
    ],
)
def test_react_prompts(
    react_server: LiveServer, react_engine: SpeakingEngine, messages: list[Any], prompt: str
) -> None:
    react_engine.answer = "x"
    post(react_server, messages, functions=[WEATHER, IMAGE])
    assert react_engine.prompt() == prompt
    assert react_engine.seen[-1].sampling.stop == ("Observation:", "<|endoftext|>")


def test_react_answers(react_server: LiveServer, react_engine: SpeakingEngine) -> None:
    react_engine.answer = REACT
    choice = post(react_server, [ASK], functions=[WEATHER])
    assert choice["finish_reason"] == "function_call"
    assert choice["message"] == CALL
    changes = [c["delta"] for c in stream(react_server, [ASK], functions=[WEATHER])]
    assert "".join(change.get("content", "") for change in changes) == CALL["content"]
    calls = [change["function_call"] for change in changes if "function_call" in change]
    assert "".join(call["arguments"] for call in calls) == ARGUMENTS


def test_tools_of_a_react_model_are_hermes(
    react_server: LiveServer, react_engine: SpeakingEngine
) -> None:
    react_engine.answer = HERMES
    assert post(react_server, [ASK], tools=TOOLS)["finish_reason"] == "tool_calls"
    assert "# Tools" in react_engine.prompt()


def test_qwen_without_a_template_has_its_own_system_prompt() -> None:
    engine = SpeakingEngine("x", template=None)
    with LiveServer(engine, model_type="qwen") as server:
        post(server, [ASK], functions=[WEATHER])
    begin = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nAnswer"
    assert engine.prompt().startswith(begin)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tool_choice": "required"}, "tool_choice", "no functions"),
    ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice", "'sometimes'"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
     "tool_choice", "no function"),
    ({"functions": [WEATHER], "function_call": {"name": "f"}}, "function_call", "no function"),
    ({"tools": TOOLS, "functions": [WEATHER]}, "functions", "together"),
    ({"tools": TOOLS + TOOLS}, "tools[1].function.name", "already"),
    ({"functions": [WEATHER, WEATHER]}, "functions[1].name", "already"),
    ({"tools": [{"type": 5}]}, "tools[0].type", "5"),
    ({"tools": [{"type": "web_search"}, {"type": "function"}]}, "tools[1].function", "required"),
    ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice", "no functions"),
    ({"tools": TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "f"}}},
     "tool_choice", "expected"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {
        "mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}}},
     "tool_choice.allowed_tools.tools[0].function.name", "'f'"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name", "''"),
    ({"functions": [{"name": "f", "parameters": []}]}, "functions[0].parameters", "object"),
    ({"functions": [{"name": "f", "parameters": {"properties": [1]}, "strict": True}]},
     "functions[0].parameters.properties[0]", "object"),
    ({"messages": [ASK, RESULT]}, "messages[1].role", "without a call"),
    ({"messages": [ASK, CALL, {"role": "tool", "tool_call_id": "x", "content": ""}]},
     "messages[2].tool_call_id", "'x'"),
    ({"messages": [ASK, {"role": "assistant", "tool_calls": [{"id": "a"}]}]},
     "messages[1].tool_calls[0].function", "object"),
    ({"messages": [ASK, {"role": "assistant", "function_call": {"name": "f", "arguments": 1}}]},
     "messages[1].function_call.arguments", "string"),
    ({"messages": [{**ASK, "function_call": CALL["function_call"]}]}, "messages[0].role", "calls"),
    ({"tools": 3}, "tools", "list"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "message"), REFUSED)
def test_refuses(tool_server: LiveServer, fields: dict[str, Any], param: str, message: str) -> None:
    named, text = refused(tool_server, **{"messages": [ASK], **fields})
    assert named == param
    assert message in text


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([BRIEF], "messages"),
        ([{"role": "assistant", "content": "x"}, ASK], "messages[0].role"),
        ([ASK, {"role": "assistant", "content": "x"}], "messages[1].role"),
    ],
)
def test_react_refuses_roles_out_of_order(
    react_server: LiveServer, messages: list[Any], param: str
) -> None:
    assert refused(react_server, messages, functions=[WEATHER])[0] == param


def test_list_form_properties_are_a_schema_inside_lists_too() -> None:
    inner = {"properties": [{"name": "b", "schema": {"type": "integer"}}]}
    listed = {"properties": [{"name": "a", "required": True, "schema": inner}]}
    assert as_schema(listed) == {
        "type": "object",
        "properties": {"a": {"type": "object", "properties": {"b": {"type": "integer"}}}},
        "required": ["a"],
    }


def test_forced_calls_are_read_from_any_model() -> None:
    support = CallSupport(ChatTemplate("{{ tools }}", {}, timeout_s=1))
    forced = CallOptions((Function(WEATHER),), "required")
    syntax = support.syntax(forced, "")
    assert syntax is not None
    parser = AnswerParser(syntax)
    call = f'{{"name": "get_current_weather", "arguments": {ARGUMENTS}}}'
    text = f"<tool_call>\n{call}\n</tool_call>"
    message = fold(parser.feed(text) + parser.finish())
    assert [call.arguments for call in message.calls] == [ARGUMENTS]


def test_ids_of_other_servers_fit_mistral() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "abcDEF123"}]},
        {"role": "tool", "content": "", "tool_call_id": "call_1"},
    ]
    first, result = template_messages(messages, "{% if call.id|length != 9 %}{{ raise }}")
    assert [len(call["id"]) for call in first["tool_calls"]] == [9, 9]
    assert first["tool_calls"][0]["id"] == result["tool_call_id"]
    assert first["tool_calls"][1]["id"] == "abcDEF123"
    assert template_messages(messages, "x")[1]["tool_call_id"] == "call_1"


def test_arguments_are_text_or_mapping_as_a_template_wants() -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls %}{% set a = c.function.arguments %}"
        "{{ a }}|{{ 'x' + a + 'y' }}|{{ a | tojson }}|{{ a is string }}|"
        "{% for k, v in a | items %}{{ k }}{% endfor %}{% endfor %}{% endfor %}{{ tools }}"
    )
    support = CallSupport(ChatTemplate(source, {}, timeout_s=1))
    call = {"name": "f", "arguments": '{"a":  1}'}
    messages = checked_messages([{"role": "assistant", "content": None, "function_call": call}])
    rendered = support.render(messages, CallOptions(), {})
    assert rendered == '{"a":  1}|x{"a":  1}y|{"a": 1}|False|aNone'


@pytest.mark.parametrize("depth", [16, 17, 33, 100, 101, 400])
def test_too_deep_a_schema_is_refused_only_where_it_is_strict(
    tool_server: LiveServer, tool_engine: SpeakingEngine, depth: int
) -> None:
    tool_engine.answer = "Text."
    parameters: dict[str, Any] = {}
    for _ in range(depth):
        parameters = {"properties": {"a": parameters}}
    function = {"name": "f", "parameters": parameters}
    for choice in ("auto", "none"):
        choice = post(tool_server, [ASK], functions=[WEATHER, function], function_call=choice)
        assert choice["message"]["content"] == "Text."
    if depth > 32:
        strict = function | {"strict": True}
        named, text = refused(tool_server, [ASK], functions=[WEATHER, strict])
        assert named.startswith("functions[1].parameters.properties.a.properties.a")
        assert "deep" in text


def test_the_guide(react_server: LiveServer, react_engine: SpeakingEngine) -> None:
    """The usage guide's function calls, as it writes them."""
    react_engine.answer = REACT
    function_request: dict[str, Any] = {
        "model": "123",
        "top_p": 0.1,
        "temperature": 0.0,
        "messages": [ASK],
        "functions": [WEATHER],
    }
    url = f"{react_server.url}/v1/chat/completions"
    response = httpx.post(url, json=function_request).json()
    function_request["messages"].append(response["choices"][0]["message"])
    function_request["messages"].append(
        {
            "role": "function",
            "name": "get_current_weather",
            "content": '{"temperature": "22", "unit": "celsius", "description": "Sunny"}',
        }
    )
    react_engine.answer = " I now know the final answer.\nFinal Answer: 22 degrees."
    choice = httpx.post(url, json=function_request).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == react_engine.answer
    assert react_engine.prompt().endswith(
        f"assistant\n{CALL_TEXT}\nObservation: "
        '{"temperature": "22", "unit": "celsius", "description": "Sunny"}\nThought:'
    )


TEXT_ANSWER = {"role": "assistant", "content": "I would look it up."}
OBSERVED = {"role": "function", "name": "get_current_weather", "content": "22"}


def test_a_result_after_a_text_answer_is_that_of_a_call(
    react_server: LiveServer, react_engine: SpeakingEngine
) -> None:
    """The guide's script calls the function whatever the model answered."""
    functions = [WEATHER, {"name": "now"}]
    twice = [ASK, TEXT_ANSWER, OBSERVED, {**OBSERVED, "name": "now", "content": "noon"}]
    post(react_server, twice, functions=functions)
    assert react_engine.prompt().endswith(
        "assistant\nThought: I would look it up."
        "\nAction: get_current_weather\nAction Input: {}\nAction: now\nAction Input: {}"
        "\nObservation: 22\nObservation: noon\nThought:"
    )


def test_a_result_after_a_text_answer_reaches_a_template(
    tool_server: LiveServer, tool_engine: SpeakingEngine
) -> None:
    post(tool_server, [ASK, TEXT_ANSWER, OBSERVED, BRIEF], tools=TOOLS)
    unasked = tool_engine.prompt().replace("call00002", "call00001")
    call = {"name": "get_current_weather", "arguments": "{}"}
    post(tool_server, [ASK, {**TEXT_ANSWER, "function_call": call}, OBSERVED, BRIEF], tools=TOOLS)
    assert unasked == tool_engine.prompt()


@pytest.mark.parametrize(
    "messages",
    [
        [ASK, OBSERVED],
        [ASK, TEXT_ANSWER, ASK, OBSERVED],
        [ASK, TEXT_ANSWER, {**OBSERVED, "name": "get_time"}],
        [ASK, TEXT_ANSWER, {"role": "function", "content": "22"}],
        [ASK, TEXT_ANSWER, {**OBSERVED, "role": "tool"}],
        [ASK, TEXT_ANSWER, {**OBSERVED, "role": "observation"}],
    ],
)
def test_other_results_without_a_call_are_refused(
    react_server: LiveServer, messages: list[Any]
) -> None:
    param, text = refused(react_server, messages, functions=[WEATHER])
    assert param == f"messages[{len(messages) - 1}].role"
    assert "put the assistant's message with the call before it" in text


def test_reasoning_has_two_names(tool_server: LiveServer) -> None:
    source = TOOL_TEMPLATE + "{# </think> #}<think>\n"
    answer = f"I thi{HERMES}nk.\n</think>\n\n{HERMES}"
    with LiveServer(SpeakingEngine(answer, template=source)) as server:
        message = post(server, [ASK], tools=TOOLS)["message"]
        changes = [c["delta"] for c in stream(server, [ASK], tools=TOOLS)]
        plain = post(server, [ASK])
        thought = {"role": "assistant", "content": None, "reasoning": "r", "tool_calls": None}
        post(server, [ASK, thought, ASK])
    assert message["reasoning_content"] == message["reasoning"] == f"I thi{HERMES}nk."
    assert len(message["tool_calls"]) == 2
    for key in ("reasoning_content", "reasoning", "content"):
        assert "".join(change.get(key) or "" for change in changes) == message[key]
    assert plain["message"]["content"] == HERMES
    assert plain["finish_reason"] == "stop"


def test_special_tokens_that_are_marks_are_kept() -> None:
    for parser, skips in {"mistral": False, "hermes": True}.items():
        engine = SpeakingEngine("x", template=TOOL_TEMPLATE)
        engine.tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
        with LiveServer(engine, tool_call_parser=parser) as server:
            post(server, [ASK], tools=TOOLS)
            assert engine.seen[-1].sampling.skip_special_tokens is skips
            post(server, [ASK])
            assert engine.seen[-1].sampling.skip_special_tokens


def test_openai_client_streams_and_sends_back(
    tool_server: LiveServer, tool_engine: SpeakingEngine
) -> None:
    tool_engine.answer = HERMES
    client = openai.OpenAI(base_url=f"{tool_server.url}/v1", api_key="any", max_retries=0)
    messages: list[Any] = [ASK]
    with client.chat.completions.stream(
        model="x",
        messages=messages,
        tools=TOOLS,  # pyright: ignore[reportArgumentType]
    ) as events:
        final = events.get_final_completion()
    message = final.choices[0].message
    assert message.tool_calls is not None
    assert [call.function.arguments for call in message.tool_calls] == [ARGUMENTS, "{}"]
    messages.append(message)
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": "22"} for call in message.tool_calls
    ]
    tool_engine.answer = "Warm."
    again = client.chat.completions.create(model="x", messages=messages)
    assert again.choices[0].message.content == "Warm."
