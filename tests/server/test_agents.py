"""What agents and their tools send at their first request, and at every one."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import anthropic
import openai
import pytest

from rtpjax.engine.request import GenerationRequest, RequestOutput
from tests.server.live_server import LiveServer
from tests.server.speaking_engine import SpeakingEngine

HERMES = (
    "{% if tools %}{% for t in tools %}{{ t.function.name }} {% endfor %}<tool_call>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
PARAMETERS = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}


class Speaker(SpeakingEngine):
    """Gives one answer after the other."""

    def say(self, *answers: str) -> None:
        self._next = list(answers)

    def generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]:
        self.answer = self._next.pop(0)
        return super().generate(request)


@pytest.fixture
def engine() -> Speaker:
    return Speaker(template=HERMES)


@pytest.fixture
def agents(engine: Speaker) -> Iterator[LiveServer]:
    with LiveServer(engine) as server:
        yield server


def call(name: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{"q": "x"}}}}\n</tool_call>'


def test_claude_code(agents: LiveServer, engine: Speaker) -> None:
    engine.say("Done.")
    body = {
        "model": "claude-sonnet-5",
        "max_tokens": 32000,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}},
                ],
            }
        ],
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "tools": [
            {
                "name": "Read",
                "description": "Reads",
                "input_schema": PARAMETERS,
                "eager_input_streaming": True,
                "defer_loading": True,
            },
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
            {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"},
        ],
        "metadata": {"user_id": "user_x_account__session_y"},
        "thinking": {"type": "adaptive"},
        "context_management": {
            "edits": [
                {"type": "clear_thinking_20251015", "keep": "all"},
                {
                    "type": "clear_tool_uses_20250919",
                    "trigger": {"type": "input_tokens", "value": 9},
                },
            ]
        },
        "output_config": {"effort": "high", "task_budget": {"type": "tokens", "total": 9000}},
        "speed": "fast",
        "mcp_servers": [],
        "fallbacks": "default",
        "diagnostics": {"previous_message_id": None},
        "betas": ["claude-code-20250219"],
        "stream": True,
    }
    response = agents.client.post("/v1/messages?beta=true", json=body)
    assert response.status_code == 200, response.text
    assert '"text":"Done."' in response.text
    assert engine.prompt().startswith("Read <tool_call>")
    count = {k: v for k, v in body.items() if k not in ("max_tokens", "stream", "metadata")}
    del count["fallbacks"], count["diagnostics"]
    counted = agents.client.post("/v1/messages/count_tokens?beta=true", json=count)
    assert counted.json() == {"input_tokens": len(engine.seen[-1].prompt_token_ids)}


def test_anthropics_tool_runner_goes_on_without_threads(
    agents: LiveServer, engine: Speaker
) -> None:
    @anthropic.beta_tool
    def look(q: str) -> str:
        """Looks."""
        return f"found {q}"

    client = anthropic.Anthropic(base_url=agents.url, api_key="any", max_retries=0)
    engine.say(call("look"), "All done.")
    runner = client.beta.messages.tool_runner(
        model="x", max_tokens=64, tools=[look], messages=[{"role": "user", "content": "go"}]
    )
    final = runner.until_done()
    assert final.content[0].type == "text" and final.content[0].text == "All done."
    assert "found x" in engine.prompt()
    with pytest.raises(anthropic.BadRequestError) as error:
        client.beta.messages.create(
            model="x",
            max_tokens=4,
            messages=[{"role": "user", "content": "go"}],
            thread={"type": "create"},
        )
    assert isinstance(error.value.body, dict)
    assert error.value.body["error"]["details"]["error_code"] == "thread_unsupported_request"


NAMESPACES = [
    {"type": "function", "name": "shell", "parameters": PARAMETERS, "strict": False},
    {"type": "web_search", "external_web_access": False},
    {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
    {"type": "local_shell"},
    {
        "type": "namespace",
        "name": "mcp__files",
        "description": "files",
        "tools": [
            {"type": "function", "name": "search", "parameters": PARAMETERS, "defer_loading": True},
            {"type": "custom", "name": "raw"},
        ],
    },
    {
        "type": "namespace",
        "name": "mcp__mail",
        "description": "mail",
        "tools": [
            {"type": "function", "name": "search", "parameters": PARAMETERS},
            {"type": "function", "name": "send", "parameters": PARAMETERS},
        ],
    },
]


def test_codex(agents: LiveServer, engine: Speaker) -> None:
    """A first turn that calls a function of a namespace, and a second one with its result."""
    client = openai.OpenAI(base_url=f"{agents.url}/v1", api_key="any", max_retries=0)
    fields: dict[str, Any] = {
        "model": "gpt-5.1-codex",
        "instructions": "You are Codex.",
        "tools": NAMESPACES,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "text": {"verbosity": "low"},
        "truncation": "auto",
        "extra_body": {"client_metadata": {"x": "y"}},
    }
    asked: list[Any] = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]}
    ]
    engine.say(call("mcp__mail__search"), "Fine.")
    with client.responses.stream(input=asked, **fields) as stream:
        answer = stream.get_final_response()
    offered = engine.prompt().partition("<tool_call>")[0].split()
    assert offered == ["shell", "mcp__files__search", "mcp__mail__search", "send"]
    made = answer.output[0].model_dump(exclude_none=True)
    assert (made["type"], made["name"], made["namespace"]) == (
        "function_call",
        "search",
        "mcp__mail",
    )
    asked += [
        made,
        {"type": "function_call_output", "call_id": made["call_id"], "output": "none"},
    ]
    assert client.responses.create(input=asked, **fields).output_text == "Fine."
    assert "<tool_call>mcp__mail__search</tool_call>" in engine.prompt()
    assert [t.name for t in answer.tools if t.type == "function"] == [
        *("shell", "search", "search", "send")
    ]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_guidellm_gets_the_usage_in_every_chunk(
    agents: LiveServer, engine: Speaker, path: str
) -> None:
    engine.say("One, two, three.")
    asked = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "a"}
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**asked, "max_tokens": 64, "stream": True, "stream_options": options}
    lines = agents.client.post(path, json=body).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    assert all(chunk["usage"]["prompt_tokens"] > 0 for chunk in chunks)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == chunks[-2]["usage"]


@pytest.mark.parametrize("include", [True, False])
def test_openrouters_usage(agents: LiveServer, engine: Speaker, include: bool) -> None:
    engine.say("Yes.")
    fields = {"stream": True, "usage": {"include": include}, "provider": {"order": ["x"]}}
    text = agents.chat(max_tokens=8, **fields).text
    assert ('"choices":[],"usage":{' in text) == include


@pytest.mark.parametrize(
    ("fields", "is_thinking", "budget"),
    [
        ({"reasoning": {"enabled": False}}, False, None),
        ({"reasoning": {"max_tokens": 9}}, None, 9),
        ({"reasoning": {"effort": "none"}}, False, None),
        ({"thinking": {"type": "disabled"}}, False, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 7}}, True, 7),
        ({"thinking_token_budget": 5}, None, 5),
        ({"thinking_token_budget": 5, "extra_configs": {"max_thinking_tokens": 9}}, None, 5),
        ({"extra_configs": {"chat_template_kwargs": {"enable_thinking": False}}}, False, None),
        ({"thinking": {"type": "enabled"}, "enable_thinking": False}, False, None),
    ],
)
def test_other_names_of_reasoning(
    fields: dict[str, Any], is_thinking: bool | None, budget: int | None
) -> None:
    engine = Speaker(template="{{ enable_thinking }}|<think></think>")
    with LiveServer(engine) as server:
        engine.say("x")
        assert server.chat(**fields).status_code == 200
        assert engine.prompt().partition("|")[0] == str("" if is_thinking is None else is_thinking)
        limit = engine.seen[-1].reasoning_limit
    assert (limit and limit.max_tokens) == budget


def test_tools_that_cannot_be_run_are_left_out(
    agents: LiveServer, engine: Speaker, caplog: pytest.LogCaptureFixture
) -> None:
    function = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}
    others = [{"type": "custom", "custom": {"name": "g"}}, {"type": "web_search_preview"}]
    for tools in ([*others, function], [function, *others], others):
        engine.say("x")
        assert agents.chat(tools=tools, max_tokens=2).status_code == 200
        assert engine.prompt().startswith("f <tool_call>") == (function in tools)
    lines = [r.getMessage() for r in caplog.records if "only functions" in r.getMessage()]
    assert len(lines) == 2
    assert "tools[] of type custom" in lines[0]


def test_only_some_of_the_tools_are_allowed(agents: LiveServer, engine: Speaker) -> None:
    tools = [{"type": "function", "function": {"name": n, "parameters": PARAMETERS}} for n in "ab"]
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "b"}}]}
    engine.say("x")
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    assert agents.chat(tools=tools, tool_choice=choice, max_tokens=2).status_code == 200
    assert engine.prompt().startswith("b <tool_call>")
