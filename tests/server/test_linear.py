"""Preparing takes time in proportion to the body, whichever of its lists is long.

Each list, object and text of each sample below is made longer, and so is each two of them at once.
A sample for each field that can be long is asked for by the models themselves.
"""

from __future__ import annotations

import copy
import gc
import itertools
import json
import time
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from pydantic import BaseModel

from rtpjax.errors import RequestError
from server.config import ServerConfig
from server.context import ModelContext
from server.lanes import SLOW
from server.routes import all_routes, body_of
from tests.server.scripted_engine import TEMPLATE, ScriptedEngine
from tests.server.speaking_engine import TOOL_TEMPLATE

SMALL, FACTOR, MOST = 1500, 8, 20  # a quadratic step takes 64 times as long
TOO_SHORT_TO_TELL_S = 0.05

Path = tuple[str | int, ...]

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "description": "what", "enum": ["x", "y"]},
        "b": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/c"}], "required": True},
    },
    "required": ["a"],
    "$defs": {"c": {"type": "integer"}},
}
LISTED = {"properties": [{"name": "q", "required": True, "schema": {"type": "string"}}]}
FUNCTION = {"name": "f", "description": "does it", "parameters": SCHEMA}
USER = {"role": "user", "content": "hi"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}
CALLING = {"role": "assistant", "content": "I look", "tool_calls": [CALL], "reasoning": "hm"}
HISTORY = [USER, CALLING, {"role": "tool", "tool_call_id": "c", "content": "42"}]
TEXTS = [{"type": "text", "text": "hi"}]
BLOCKS = [
    {"role": "user", "content": [*TEXTS, {"type": "text", "text": "there"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            *TEXTS,
            {"type": "tool_use", "id": "c", "name": "f", "input": {"a": ["b"]}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": TEXTS}]},
]
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}], "summary": []},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": TEXTS},
    {"role": "assistant", "content": "yes"},
]
TAG = {
    "type": "structural_tag",
    "triggers": ["<a"],
    "structures": [{"begin": "<a>", "end": "</a>", "schema": SCHEMA}],
}
CONFIG = {
    "stop_words_str": ["s"],
    "stop_words_list": [[1, 2]],
    "bad_words_list": [[3]],
    "response_format": {"type": "json_object"},
}
SAMPLING: dict[str, Any] = {
    "stop": ["s"],
    "stop_token_ids": [1],
    "stop_words_list": [[1, 2]],
    "bad_words": ["b"],
    "bad_words_list": [[1, 2]],
    "allowed_token_ids": [1],
    "logit_bias": {"7": 1},
    "cache_salt": "salt",
    "extra_configs": CONFIG,
}
FORMS: dict[str, Any] = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    "guided_json": SCHEMA,
    "guided_regex": "a",
    "guided_choice": ["a", "b"],
    "guided_grammar": 'start: "a"',
    "structured_outputs": {"choice": ["a"]},
}
ONE_BY_ONE = SAMPLING | FORMS

# Route -> bodies. Of fields that stand one by one each makes a body of its own.
SAMPLES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": HISTORY},
        {"messages": [{"role": "user", "content": TEXTS, "name": "n"}, CALLING]},
        {"messages": [USER, {"role": "assistant", "content": "yes"}], "user_template": "x"},
        {"messages": [USER], "tools": [{"type": "function", "function": FUNCTION}]},
        {
            "messages": [USER],
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
        {
            "messages": [
                USER,
                {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
                {"role": "function", "name": "f", "content": "42"},
            ],
            "functions": [FUNCTION | {"parameters": LISTED}],
            "function_call": {"name": "f"},
        },
        {"messages": [USER], "response_format": TAG},
        {"messages": [USER], "chat_template_kwargs": {"date_string": "today"}},
        {"messages": [USER], "model": "m", "metadata": {"a": "b"}},
        *({"messages": [USER], name: value} for name, value in ONE_BY_ONE.items()),
    ],
    "/v1/batch/chat/completions": [{"requests": [{"messages": [USER]}]}],
    "/v1/completions": [
        {"prompt": "hi"},
        {"prompt": [7]},
        {"prompt": ["hi", [7, 8]]},
        *({"prompt": "hi", name: value} for name, value in ONE_BY_ONE.items()),
    ],
    "/v1/responses": [
        {"input": ITEMS},
        {"input": "hi", "instructions": "be kind", "metadata": {"a": "b"}},
        {
            "input": "hi",
            "tools": [{"type": "function", **FUNCTION}],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "f"}],
            },
        },
        {"input": "hi", "include": ["reasoning.encrypted_content"], "model": "m"},
        {
            "input": "hi",
            "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
        },
    ],
    "/v1/messages": [
        {"messages": BLOCKS, "max_tokens": 5},
        {"messages": [USER, USER], "system": TEXTS, "max_tokens": 5, "stop_sequences": ["s"]},
        {
            "messages": [USER],
            "max_tokens": 5,
            "model": "m",
            "tools": [{"name": "f", "input_schema": SCHEMA}],
            "tool_choice": {"type": "tool", "name": "f"},
        },
        {
            "messages": [USER],
            "max_tokens": 5,
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
    ],
    "/v1/messages/count_tokens": [{"messages": BLOCKS, "system": "be kind"}],
    "/": [
        {"prompt": "hi", "generate_config": CONFIG},
        {"text": "hi", "generation_config": CONFIG, "source": "s"},
        {"messages": [USER]},
        {"prompt_batch": ["hi", [USER]]},
        *({"prompt": "hi", name: value} for name, value in CONFIG.items()),
    ],
    "/v1/chat/render": [{"messages": HISTORY}],
    "/tokenizer/encode": [{"prompt": "hi"}],
    "/tokenize": [
        {"prompt": "hi", "return_token_strs": True, "model": "m"},
        {"text": "hi"},
        {"messages": HISTORY},
    ],
    "/detokenize": [{"tokens": [7], "model": "m"}],
    "/set_log_level": [{"log_level": "INFO"}],
}
SAME_AS = {
    "/chat/completions": "/v1/chat/completions",
    "/completions": "/v1/completions",
    "/responses": "/v1/responses",
    "/chat/render": "/v1/chat/render",
    "/batch_infer": "/",
}
# Templates and formats that take other ways to a prompt and to a grammar.
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"template": TEMPLATE},
    "tools": {"template": TOOL_TEMPLATE},
    "react": {"template": TEMPLATE, "model_type": "qwen"},
    "xml": {"template": TOOL_TEMPLATE, "tool_call_parser": "qwen3_coder"},
    "python": {"template": TOOL_TEMPLATE, "tool_call_parser": "pythonic"},
}


@cache
def context_of(model: str) -> ModelContext:
    settings = dict(MODELS[model])
    engine = ScriptedEngine(template=settings.pop("template"))
    engine.max_model_len = 2**24
    context = ModelContext(engine, ServerConfig(allow_user_template=True, **settings))
    context.lane = SLOW
    return context


def handlers() -> dict[str, Any]:
    return {path: handler for _, path, handler, *_ in all_routes() if body_of(handler)}


# ---- every field that can be long has a sample


def long_fields(model: type[BaseModel]) -> Iterator[str]:
    """Names of fields whose values can be long; those of models in them, too."""
    for name, field in model.model_fields.items():
        kinds = list(_kinds(field.annotation))
        if any(kind in (Any, str, list, dict) for kind in kinds):
            yield name
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from long_fields(kind)


def _kinds(annotation: Any) -> Iterator[Any]:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return
    if origin in (list, dict):
        yield origin
    elif not parts:
        yield annotation
    for part in parts:
        yield from _kinds(part)


def keys_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from keys_of(inner)


@pytest.mark.parametrize("route", sorted(handlers()))
def test_every_long_field_has_a_sample(route: str) -> None:
    model = body_of(handlers()[route])
    assert model is not None
    sampled = {key for body in SAMPLES[SAME_AS.get(route, route)] for key in keys_of(body)}
    elsewhere = set(ONE_BY_ONE) | {"user_template", "date_string", "tools", "functions"}
    elsewhere |= {"tool_choice", "function_call", "system", "model", "content"}
    missing = set(long_fields(model)) - sampled - elsewhere
    assert not missing, f"fields of {route} without a sample in SAMPLES"


# ---- the samples, made longer


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where a body has lists, objects and texts."""
    if isinstance(value, dict | list | str) and path:
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def at(body: Any, path: Path) -> Any:
    for key in path:
        body = body[key]
    return body


def grow(body: Any, path: Path, size: int, *, is_unique: bool) -> None:
    """Makes what is at a path long."""
    value, holder = at(body, path), at(body, path[:-1])
    if isinstance(value, str):
        holder[path[-1]] = value * (10 * size)
    elif isinstance(value, list):
        period = len(value)
        holder[path[-1]] = [
            renamed(value[i % period], i // period) if is_unique else value[i % period]
            for i in range(size if period else 0)
        ]
    else:
        inner = list(value.values())
        value |= {str(i): inner[i % len(inner)] for i in range(size if inner else 0)}


_IDENTIFYING = ("id", "call_id", "tool_call_id", "tool_use_id", "name")


def renamed(value: Any, number: int) -> Any:
    """A copy with ids and names of its own."""
    if isinstance(value, list):
        return [renamed(each, number) for each in value]
    if isinstance(value, str):
        return f"{value}{number}"
    if not isinstance(value, dict):
        return value
    return {
        key: f"{each}{number}"
        if key in _IDENTIFYING
        else renamed(each, number)
        if isinstance(each, dict | list)
        else each
        for key, each in value.items()
    }


def longer(sample: dict[str, Any], paths: tuple[Path, ...], size: int, *, is_unique: bool) -> bytes:
    body = copy.deepcopy(sample)
    # Inner ones first: an outer one then has copies of them.
    for path in sorted(paths, key=len, reverse=True):
        grow(body, path, size, is_unique=is_unique)
    return json.dumps(body).encode()


def seconds(route: str, model: str, body: bytes) -> float:
    """Processor time of this thread: what else the machine does counts less."""
    prepare, context = handlers()[route].__wrapped__, context_of(model)
    gc.collect()
    gc.disable()
    start_s = time.thread_time()
    try:
        prepare(body, context)
    except RequestError:
        pass
    finally:
        gc.enable()
    return time.thread_time() - start_s


def check(
    route: str, model: str, sample: dict[str, Any], paths: tuple[Path, ...], size: int
) -> None:
    for is_unique in (True, False):
        small = longer(sample, paths, size, is_unique=is_unique)
        large = longer(sample, paths, FACTOR * size, is_unique=is_unique)
        growth = len(large) / len(small)
        times = [seconds(route, model, large)]
        if times[0] < TOO_SHORT_TO_TELL_S:
            continue
        # Only what looks bad is measured again.
        base = [seconds(route, model, small)]
        for _ in range(4):
            if min(times) < max(MOST * growth / FACTOR * min(base), TOO_SHORT_TO_TELL_S):
                break
            times.append(seconds(route, model, large))
            base.append(seconds(route, model, small))
        else:
            pytest.fail(
                f"{growth:.0f} times the body ({len(large)} bytes) takes "
                f"{min(times) / min(base):.0f} times as long: {min(base):.3f} s, {min(times):.3f} s"
            )


def _models_of(sample: dict[str, Any]) -> list[str]:
    """Calls are what models differ in."""
    has_calls = any(key in str(sample) for key in ("tool", "function"))
    return list(MODELS) if has_calls else ["plain"]


CASES = [
    pytest.param(route, model, sample, id=f"{route}-{number}-{model}")
    for route, samples in SAMPLES.items()
    for number, sample in enumerate(samples)
    for model in _models_of(sample)
]


@pytest.mark.parametrize(("route", "model", "sample"), CASES)
def test_one_is_long(route: str, model: str, sample: dict[str, Any]) -> None:
    for path in places(sample):
        check(route, model, sample, (path,), SMALL)


@pytest.mark.parametrize(("route", "model", "sample"), CASES)
def test_two_are_long(route: str, model: str, sample: dict[str, Any]) -> None:
    for pair in itertools.combinations(places(sample), 2):
        is_inside = pair[1][: len(pair[0])] == pair[0]
        if not is_inside:  # (the product of both is what the body grows by, then)
            check(route, model, sample, pair, SMALL // 2)
