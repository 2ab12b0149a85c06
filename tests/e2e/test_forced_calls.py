"""Forced calls from random weights: whatever the model, they parse and fit their schemas."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from rtpjax.engine.request import SamplingParams
from server.function_calls import CallOptions, Function
from server.grammars.calls import CallStyle
from server.json_schema.normal_form import normal_form
from server.tool_parsers import tool_formats
from tests.e2e import byte_model
from tests.e2e.schemas import SCHEMAS

BEGIN, END = "<tool_call>\n", "\n</tool_call>"


STYLE = CallStyle.of(tool_formats()["hermes"], "")


def judge(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    """By the schema as it was given, where it is one: properties in a list are our own."""
    if isinstance(schema.get("properties"), list):
        schema = normal_form(schema).schema
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(schema, format_checker=checker)


def calls_of(text: str) -> list[dict[str, Any]]:
    """The calls, when the text is nothing but calls."""
    found = []
    while text:
        assert text.startswith(BEGIN)
        call, end, text = text.removeprefix(BEGIN).partition(END)
        assert end
        found.append(json.loads(call))
        assert found[-1].keys() == {"name", "arguments"}
        text = text.removeprefix("\n") if text else ""
    return found


def check_forced_calls(first: int, count: int) -> None:
    """Calls number first to first + count, the schemas in turn."""
    engine = byte_model.make_engine()
    prompts, each, grammars, allowed = [], [], [], []
    for number in range(first, first + count):
        rng = random.Random(number)
        schema = SCHEMAS[number % len(SCHEMAS)]
        schemas = {"wanted": schema, "other.one": SCHEMAS[rng.randrange(len(SCHEMAS))]}
        named = "wanted" if rng.random() < 0.7 else None
        functions = tuple(Function({"name": n, "parameters": s}) for n, s in schemas.items())
        calls = CallOptions(functions, "required", named, is_parallel=rng.random() < 0.2)
        grammars.append(STYLE.forced(calls))
        allowed.append({"wanted": schema} if named else schemas)
        prompts.append(byte_model.encode(f"call {number}"))
        temperature = rng.choice([1.0, 1.5, 2.0])
        each.append(SamplingParams(temperature=temperature, seed=number))
    results = engine.generate(prompts, each, grammars)
    for outputs, schemas in zip(results, allowed, strict=True):
        text = "".join(o.text for o in outputs)
        if outputs[-1].finish_reason == "length" and END in text:
            text = text[: text.rindex(END)] + END  # one more of several calls was cut off
        else:
            assert outputs[-1].finish_reason == "stop", text
        calls = calls_of(text)
        assert calls
        for call in calls:
            judge(schemas[call["name"]]).validate(call["arguments"])
    assert byte_model.runner().num_recompiles == 0


def test_there_are_fifty_schemas() -> None:
    assert len(SCHEMAS) == 50


def test_forced_calls_fit_their_schemas() -> None:
    check_forced_calls(0, 100)


@pytest.mark.nightly
def test_a_thousand_forced_calls_fit_their_schemas() -> None:
    check_forced_calls(100, 1000)
