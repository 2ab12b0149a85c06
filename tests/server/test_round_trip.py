"""Whatever the server answers it takes back as history, on every route and from every client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.live_server import LiveServer
from tests.server.speaking_engine import TOOL_TEMPLATE, SpeakingEngine

ASK = {"role": "user", "content": "How is the weather?"}
AGAIN = "And tomorrow, if I may ask?"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
}
FUNCTION = {"name": "get_weather", "description": "Asks.", "parameters": PARAMETERS}

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}CALLS<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}{# </think> #}"
)
# In the manner of Qwen3-Coder: arguments are gone through one by one.
ITEMS_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<tool_call><function={% endif %}"
    + TURNS.replace(
        "CALLS",
        "{% for c in m.tool_calls or [] %}<tool_call>\n<function={{ c.function.name }}>\n"
        "{% for k, v in c.function.arguments | items %}<parameter={{ k }}>\n{{ v }}\n</parameter>\n"
        "{% endfor %}</function>\n</tool_call>{% endfor %}",
    )
)
# In the manner of Ministral 3: an assistant's turn has something in it.
STRICT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' and not m.content and not m.tool_calls %}"
    "{{ raise_exception('nothing is said') }}{% endif %}{% endfor %}{% if tools %}<tool_call>"
    "{{ tools | tojson }}{% endif %}"
    + TURNS.replace(
        "CALLS", "{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}"
    )
)
# In the manner of gpt-oss, and with other words for nothing.
NONE_TEMPLATE = STRICT_TEMPLATE.replace("not m.content and", "m.content is none and")

REASONING = "Let me see.\n</think>\n\n"
HERMES = (
    REASONING + 'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "O\\"slo", '
    '"days": 3}}\n</tool_call>\n<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
)
CODER = (
    REASONING + "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)
MODELS = {
    "hermes": (TOOL_TEMPLATE + "<think>\n{# </think> #}", HERMES),
    "items": (ITEMS_TEMPLATE, CODER),
    "strict": (STRICT_TEMPLATE, HERMES),
    "none": (NONE_TEMPLATE, HERMES),
    "no tools": (TURNS.replace("CALLS", ""), HERMES),
    "no template": (None, "I look.\n" + HERMES[len(REASONING) :]),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Iterator[tuple[LiveServer, SpeakingEngine, str]]:
    template, text = MODELS[request.param]
    engine = SpeakingEngine(template=template)
    engine.size, engine.end = 1000, "length"
    with LiveServer(engine) as server:
        yield server, engine, text


def sent(server: LiveServer, path: str, **body: Any) -> dict[str, Any]:
    response = server.client.post(path, json=body)
    assert response.status_code == 200, (response.text, body)
    return response.json()


def cuts(text: str) -> list[str]:
    return [text[:end] for end in range(0, len(text) + 1, 9)] + [text]


def check_prompt(engine: SpeakingEngine, *texts: str | None) -> None:
    prompt = engine.prompt()
    for text in (ASK["content"], AGAIN, *texts):
        assert (text or "").strip() in prompt


def shown(arguments: str) -> str:
    """What every template shows of a call's arguments: some take objects apart."""
    return "" if arguments.endswith("}") else arguments


@pytest.mark.parametrize("dialect", ["tools", "functions"])
def test_chat(model: tuple[LiveServer, SpeakingEngine, str], dialect: str) -> None:
    server, engine, text = model
    is_tools = dialect == "tools"
    offered = {"tools": [{"type": "function", "function": FUNCTION}]}
    offered = offered if is_tools else {"functions": [FUNCTION]}
    path = "/v1/chat/completions"
    for answer in cuts(text):
        engine.answer = answer
        message = sent(server, path, messages=[ASK], **offered)["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        results: list[Any] = [
            {"role": "tool", "tool_call_id": call["id"], "content": "22"} for call in calls
        ]
        arguments = [shown(call["function"]["arguments"]) for call in calls]
        if call := message.get("function_call"):
            results = [{"role": "function", "name": call["name"], "content": "22"}]
            arguments = [shown(call["arguments"])]
        reasoning = {"reasoning_content", "reasoning"}
        unthought = {key: message[key] for key in message.keys() - reasoning}
        said = {"role": "assistant", "content": message["content"]}
        for history in (
            [message, *results],
            [unthought, *results],
            [said],
            [{"role": "assistant"}],
            [said | {"content": []}],
            [said | {"content": [{"type": "text", "text": message["content"] or ""}]}],
            [said | {"audio": None, "refusal": None, "annotations": [], "id": "msg_1"}],
        ):
            messages = [ASK, *history, {"role": "user", "content": AGAIN}]
            sent(server, path, messages=messages, **offered)
            has_calls = len(history) > 1
            check_prompt(engine, *(arguments if has_calls else ()))
            if history[0].get("content") == message["content"]:
                check_prompt(engine, message["content"])


def test_responses(model: tuple[LiveServer, SpeakingEngine, str]) -> None:
    server, engine, text = model
    offered = {"tools": [{"type": "function", **FUNCTION}]}
    again = {"role": "user", "content": AGAIN}
    for answer in cuts(text):
        engine.answer = answer
        output = sent(server, "/v1/responses", input=[ASK], **offered)["output"]
        calls = [item for item in output if item["type"] == "function_call"]
        results = [
            {"type": "function_call_output", "call_id": call["call_id"], "output": "22"}
            for call in calls
        ]
        texts = [item for item in output if item["type"] == "message"]
        said = [{"role": "assistant", "content": item["content"]} for item in texts]
        plain = [
            {"role": "assistant", "content": [{"type": "output_text", "text": part["text"]}]}
            for item in texts
            for part in item["content"]
        ]
        unthought = [item for item in output if item["type"] != "reasoning"]
        for items in ([*output, *results], [*unthought, *results], said, plain):
            sent(server, "/v1/responses", input=[ASK, *items, again], **offered)
            check_prompt(engine, *(p["text"] for item in texts for p in item["content"]))
            if items[-1:] == results[-1:] and results:
                check_prompt(engine, *(shown(call["arguments"]) for call in calls))
        for nothing in (None, "", []):
            item = {"role": "assistant", "content": nothing}
            sent(server, "/v1/responses", input=[ASK, item, again], **offered)
        sent(server, "/v1/responses", input=[ASK, *unthought, *results], **offered)


def test_messages(model: tuple[LiveServer, SpeakingEngine, str]) -> None:
    server, engine, text = model
    offered = {
        "max_tokens": 100,
        "tools": [{"name": "get_weather", "description": "Asks.", "input_schema": PARAMETERS}],
    }
    for answer in cuts(text):
        engine.answer = answer
        content = sent(server, "/v1/messages", messages=[ASK], **offered)["content"]
        calls = [block for block in content if block["type"] == "tool_use"]
        results: list[Any] = [
            {"type": "tool_result", "tool_use_id": call["id"], "content": "22"} for call in calls
        ]
        again = {"role": "user", "content": [*results, {"type": "text", "text": AGAIN}]}
        unthought = [block for block in content if block["type"] != "thinking"]
        texts = [block["text"] for block in content if block["type"] == "text"]
        # Clients may have dropped the signature, or kept the text of a call that was cut.
        unsigned = [{k: v for k, v in block.items() if k != "signature"} for block in content]
        cut = [
            block | {"input": '{"city": "Os'} if block["type"] == "tool_use" else block
            for block in content
        ]
        for blocks in (content, unthought, unsigned, cut):
            messages = [ASK, {"role": "assistant", "content": blocks}, again]
            sent(server, "/v1/messages", messages=messages, **offered)
            check_prompt(engine, *texts, *(['{"city": "Os'] if blocks is cut and calls else []))
        for said in ([], "", "\n".join(texts)):
            ask = {"role": "user", "content": AGAIN}
            messages = [ASK, {"role": "assistant", "content": said}, ask]
            sent(server, "/v1/messages", messages=messages, **offered)
        if not calls:
            messages = [ASK, {"role": "assistant", "content": content}]
            sent(server, "/v1/messages", messages=messages, **offered)


ODD_ARGUMENTS = ['{"city": "Os', "[", '["B"]', '"x"', "3", '{"a": NaN', "\ud7ff", "[" * 5000]


@pytest.mark.parametrize("arguments", ODD_ARGUMENTS)
def test_arguments_that_are_no_object_reach_the_prompt_as_they_are(
    model: tuple[LiveServer, SpeakingEngine, str], arguments: str
) -> None:
    server, engine, _ = model
    function = {"name": "get_weather", "arguments": arguments}
    sound = {"name": "get_weather", "arguments": '{"days": 12345}'}
    calls = [
        {"id": f"call0000{i}", "type": "function", "function": call}
        for i, call in enumerate((function, sound))
    ]
    history = [
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call00000", "content": "wrong"},
        {"role": "tool", "tool_call_id": "call00001", "content": "right"},
    ]
    messages = [ASK, *history, {"role": "user", "content": AGAIN}]
    tools = [{"type": "function", "function": FUNCTION}]
    sent(server, "/v1/chat/completions", messages=messages, tools=tools)
    check_prompt(engine, arguments, "12345", "wrong", "right")
    assert engine.prompt().index(arguments) < engine.prompt().index("wrong")


@pytest.mark.parametrize("arguments", ["", "null", " null\n", None, "{}"])
def test_no_arguments_are_an_empty_object(
    model: tuple[LiveServer, SpeakingEngine, str], arguments: str | None
) -> None:
    server, engine, _ = model
    prompts = []
    for text in (arguments, "{}"):
        function = {"name": "get_weather", "arguments": text}
        call = {"id": "call00000", "type": "function", "function": function}
        history = [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call00000", "content": "22"},
        ]
        tools = [{"type": "function", "function": FUNCTION}]
        sent(server, "/v1/chat/completions", messages=[ASK, *history], tools=tools)
        prompts.append(engine.prompt())
    assert prompts[0] == prompts[1]
    assert "null" not in prompts[0].rpartition("<tools>")[2]
