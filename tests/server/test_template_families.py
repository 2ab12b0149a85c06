"""What sets the templates of model families apart, each with the lines that do; ours, in short."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from server.answer_parser import AnswerParser
from server.chat_template import ChatTemplate
from server.function_calls import CallOptions
from server.function_calls.support import CallSupport
from server.parsing.events import fold
from server.protocol.chat_messages import checked_messages
from server.protocol.tools import call_options
from tests.server.live_server import LiveServer
from tests.server.speaking_engine import TOOL_TEMPLATE, SpeakingEngine

ARGUMENTS = '{"city": "Paris", "days": 3}'
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
CALL = {
    "id": "call_abc",
    "type": "function",
    "function": {"name": "get_weather", "arguments": ARGUMENTS},
}
HISTORY: list[Any] = [
    {"role": "user", "content": "How is it?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_abc", "content": "22 degrees"},
]


def options() -> CallOptions:
    return call_options(
        tools=[TOOL], tool_choice=None, functions=None, function_call=None, is_parallel=True
    )


def support(source: str) -> CallSupport:
    return CallSupport(ChatTemplate(source, {}, timeout_s=5))


def test_calls_are_kept_by_a_template_that_writes_none() -> None:
    """Granite 3.3 and LFM2: their templates list the tools, and pass over `tool_calls`."""
    calls = support(
        "{% if tools %}{{ tools | tojson }}<|tool_call|>{% endif %}"
        "{% for m in messages %}<|start_of_role|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
    )
    prompt = calls.render(checked_messages(HISTORY), options(), {})
    written = prompt.partition("assistant\n")[2].partition("<|start_of_role|>")[0]
    syntax = calls.syntax(options(), "")
    assert syntax is not None
    parser = AnswerParser(syntax)
    [call] = fold(parser.feed(written) + parser.finish()).calls
    assert (call.name, json.loads(call.arguments)) == ("get_weather", json.loads(ARGUMENTS))
    assert "22 degrees" in prompt


@pytest.mark.parametrize(
    ("line", "content"),
    [
        ("{% if m['content'] is none %}none{% else %}{{ m.content | length }}{% endif %}", "none"),
        # Ministral's: only a text has a length.
        (
            "{% if (m['content'] is none or m['content'] == '') and not m.tool_calls %}empty"
            "{% elif m['content'] | length > 0 %}text{% else %}nothing{% endif %}",
            "nothing",
        ),
    ],
)
def test_content_beside_calls_is_what_the_template_looks_for(line: str, content: str) -> None:
    calls = support(
        "{% if tools %}{% endif %}{% for m in messages %}{% if m.tool_calls %}"
        + line
        + "{% endif %}"
        "{% endfor %}"
    )
    assert calls.render(checked_messages(HISTORY), options(), {}) == content


@pytest.mark.parametrize(
    ("source", "is_unknown"),
    [
        (TOOL_TEMPLATE, False),
        ("{{ messages[0].content }}", False),  # is taught ours
        ("{{ tools }}<seed:tool_call>{{ messages[0].content }}", True),
        ("{{ tools }}[TOOL_CALLS]{{ messages[0].content }}", False),
    ],
)
def test_a_format_that_is_not_known_is_said_at_the_start(
    source: str, is_unknown: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, "server.context"),
        LiveServer(SpeakingEngine("x", template=source)),
    ):
        pass
    assert ("TOOL_CALL_PARSER" in caplog.text) == is_unknown


def test_a_chosen_format_is_known() -> None:
    source = ChatTemplate("{{ tools }}{{ messages }}", {}, timeout_s=5)
    assert CallSupport(source).is_format_unknown
    assert not CallSupport(source, tool_call_parser="hermes").is_format_unknown
