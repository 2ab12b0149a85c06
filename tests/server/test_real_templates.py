"""Calls with the templates and the tokens of real models."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rtpjax.engine.detokenizer import Detokenizer
from server.answer_parser import AnswerParser
from server.chat_template import ChatTemplate
from server.function_calls import CallOptions
from server.function_calls.support import CallSupport
from server.parsing.events import Message, fold
from server.protocol.chat_messages import checked_messages
from server.protocol.tools import call_options
from tests.server.npm_tokenizers import npm_tokenizer
from tests.server.tool_parsers.transcripts import HARD_JSON, TRANSCRIPTS

pytestmark = pytest.mark.slow

NAMES = ("qwen3", "llama3_1", "deepseek_v3", "gemma3", "gptoss")
LISTED = {"properties": [{"name": "city", "required": True, "schema": {"type": "string"}}]}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": LISTED}}
ASK = {"role": "user", "content": "How is the weather?"}
CALL = {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": HARD_JSON}}
HISTORY = [
    {"role": "system", "content": "Be brief."},
    ASK,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a", "content": "22 degrees"},
]


def support(name: str) -> CallSupport:
    tokenizer = npm_tokenizer(name)
    return CallSupport(ChatTemplate.from_tokenizer(tokenizer, timeout_s=5))


def options(**fields: Any) -> CallOptions:
    absent = dict.fromkeys(("tools", "tool_choice", "functions", "function_call"))
    return call_options(**{**absent, **fields}, is_parallel=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fields", [{"tools": [TOOL]}, {"functions": [TOOL["function"]]}])
def test_every_template_renders_tools_calls_and_results(name: str, fields: dict[str, Any]) -> None:
    prompt = support(name).render(checked_messages(HISTORY), options(**fields), {})
    assert '"required": ["city"]' in prompt
    assert "Be brief." in prompt
    assert HARD_JSON in prompt
    assert "22 degrees" in prompt


@pytest.mark.parametrize("name", NAMES)
def test_what_a_template_writes_is_what_is_parsed(name: str) -> None:
    """A call in the history is written as the model would write it."""
    calls = support(name)
    chosen = options(tools=[TOOL])
    before = calls.render(checked_messages(HISTORY[:2]), chosen, {"enable_thinking": False})
    after = calls.render(checked_messages(HISTORY), chosen, {})
    syntax = calls.syntax(chosen, before)
    assert syntax is not None
    start = after.index("<tool_call>", after.index(ASK["content"]))
    parser = AnswerParser(syntax)
    message = fold(parser.feed(after[start:]) + parser.finish())
    assert json.loads(message.calls[0].arguments) == json.loads(HARD_JSON)


def test_formats_of_real_templates() -> None:
    qwen = support("qwen3")
    assert (qwen.tool_format, qwen.reasoning_format) == ("hermes", "think")
    assert support("llama3_1").reasoning_format == "none"


@pytest.mark.parametrize("name", NAMES)
def test_cut_by_token(name: str) -> None:
    """Every hermes transcript, through the tokens of a real model."""
    tokenizer = npm_tokenizer(name)
    calls = support(name)
    chosen = options(tools=[TOOL])
    syntax = calls.syntax(chosen, "")
    assert syntax is not None

    def parse(pieces: list[str]) -> Message:
        parser = AnswerParser(syntax)
        message = fold([e for piece in pieces for e in parser.feed(piece)] + parser.finish())
        for call in message.calls:
            call.id = ""
        return message

    for case in TRANSCRIPTS["hermes"]:
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
        ids = tokenizer.backend_tokenizer.encode(case.text, add_special_tokens=False).ids
        pieces = [detokenizer.push([token_id]) for token_id in ids] + [detokenizer.finish()]
        message = parse(pieces)
        assert message == parse(["".join(pieces)])
        assert [call.name for call in message.calls] == [name for name, _ in case.calls]
