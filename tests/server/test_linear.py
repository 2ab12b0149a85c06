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

SMALL_BYTES, FACTOR, MOST = 10_000, 16, 40  # what is quadratic takes 256 times as long
TOO_SHORT_TO_TELL_S = 0.04

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
    "chat_template_kwargs": {"date_string": "today"},
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
        {"messages": [USER], "tools": [{"type": "function", "function": FUNCTION}]},
        {"messages": [{"role": "user", "content": TEXTS, "name": "n"}, CALLING]},
        {"messages": [USER, {"role": "assistant", "content": "yes"}], "user_template": "x"},
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
        {"messages": [USER], "chat_template": "x"},
        {"messages": [USER], "template_key": "default"},
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
        {
            "input": "hi",
            "instructions": "be kind",
            "metadata": {"a": "b"},
            "reasoning": {"effort": "low"},
        },
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
            "output_config": {
                "effort": "low",
                "format": {"type": "json_schema", "schema": SCHEMA},
            },
        },
    ],
    "/v1/messages/count_tokens": [
        {"messages": BLOCKS, "system": "be kind", "output_config": {"effort": "low"}}
    ],
    "/": [
        {"prompt": "hi", "generate_config": CONFIG},
        {"text": "hi", "generation_config": CONFIG, "source": "s"},
        {"messages": [USER]},
        {"prompt_batch": ["hi", [USER]]},
        *({"prompt": "hi", name: value} for name, value in CONFIG.items()),
    ],
    "/v1/chat/render": [{"messages": HISTORY, "extra_configs": CONFIG}],
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


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """What is there already is not looked through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


def handlers() -> dict[str, Any]:
    return {path: handler for _, path, handler, *_ in all_routes() if body_of(handler)}


# ---- every field that can be long has a sample


def long_fields(model: type[BaseModel]) -> Iterator[str]:
    """Names of fields whose values can be long; those of models in them, too."""
    for name, field in model.model_fields.items():
        kinds = list(_kinds(field.annotation))
        if any(kind in (Any, str, list, dict) for kind in kinds):
            yield field.alias or name
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
    elsewhere |= {"chat_template", "template_key"}
    elsewhere |= {"tool_choice", "function_call", "system", "model", "schema"}
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


_IDENTIFYING = ("id", "call_id", "tool_call_id", "tool_use_id", "name")
_NUMBER = "\u00a7"


def numbered(value: Any) -> Any:
    """A copy whose ids and names have a place for a number."""
    if isinstance(value, list):
        return [numbered(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {k: v + _NUMBER if k in _IDENTIFYING else numbered(v) for k, v in value.items()}


def grown(value: Any, num_bytes: int, *, is_unique: bool) -> str:
    """The JSON of a list, an object or a text that is as long as that."""
    if isinstance(value, str):
        return json.dumps(value * (num_bytes // max(1, len(value))))
    inner = list(value.values()) if isinstance(value, dict) else value
    if not inner:
        return json.dumps(value)
    if is_unique:
        inner = [each + _NUMBER if isinstance(each, str) else numbered(each) for each in inner]
    texts = [json.dumps(each, ensure_ascii=False) for each in inner]
    own = (
        [json.dumps(key) + ":" + text for key, text in zip(value, texts, strict=False)]
        if isinstance(value, dict)
        else []
    )
    if isinstance(value, dict):
        texts = [f'"{_NUMBER}":{text}' for text in texts]
    count = num_bytes // max(map(len, texts)) + 1
    parts = [texts[i % len(texts)].replace(_NUMBER, str(i // len(texts))) for i in range(count)]
    joined = ",".join([*(text.replace(_NUMBER, "") for text in own), *parts])
    return f"{{{joined}}}" if isinstance(value, dict) else f"[{joined}]"


def longer(
    sample: dict[str, Any], paths: tuple[Path, ...], num_bytes: int, *, is_unique: bool
) -> bytes:
    body, texts = copy.deepcopy(sample), []
    for i, path in enumerate(paths):
        texts.append(grown(at(body, path), num_bytes, is_unique=is_unique))
        at(body, path[:-1])[path[-1]] = f"@{i}@"
    content = json.dumps(body)
    for i, text in enumerate(texts):
        content = content.replace(f'"@{i}@"', text)
    return content.encode()


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


def check(route: str, model: str, sample: dict[str, Any], paths: tuple[Path, ...]) -> None:
    has_names = any(numbered([at(sample, path)]) != [at(sample, path)] for path in paths)
    for is_unique in (True, False) if has_names else (False,):
        small = longer(sample, paths, SMALL_BYTES, is_unique=is_unique)
        large = longer(sample, paths, FACTOR * SMALL_BYTES, is_unique=is_unique)
        times = [seconds(route, model, large)]
        if times[0] < TOO_SHORT_TO_TELL_S:
            continue
        # Only what looks bad is measured again.
        base = [seconds(route, model, small)]
        while min(times) > max(MOST * min(base), TOO_SHORT_TO_TELL_S):
            if len(times) == 5:
                message = (
                    f"{' and '.join(map(str, paths))}: {len(large) / len(small):.0f} times the"
                )
                message += f" body takes {min(times) / min(base):.0f} times as long, "
                pytest.fail(f"{message} {min(base):.3f} s and {min(times):.3f} s")
            times.append(seconds(route, model, large))
            base.append(seconds(route, model, small))


def models_of(sample: dict[str, Any]) -> list[str]:
    """Models differ in calls, and all APIs come to the chat's."""
    is_where_they_differ = sample in SAMPLES["/v1/chat/completions"][:2]
    return list(MODELS) if is_where_they_differ else ["plain"]


CASES = [
    pytest.param(route, model, sample, id=f"{route}-{number}-{model}")
    for route, samples in SAMPLES.items()
    for number, sample in enumerate(samples)
    for model in models_of(sample)
]


@pytest.mark.parametrize(("route", "model", "sample"), CASES)
def test_one_is_long(route: str, model: str, sample: dict[str, Any]) -> None:
    for path in places(sample):
        check(route, model, sample, (path,))


@pytest.mark.slow
@pytest.mark.parametrize(("route", "model", "sample"), CASES)
def test_two_are_long(route: str, model: str, sample: dict[str, Any]) -> None:
    """Neighbours, and lists in different fields."""
    for one, other in itertools.combinations(places(sample), 2):
        are_lists = isinstance(at(sample, one), list) and isinstance(at(sample, other), list)
        if one[:-1] == other[:-1] or (one[0] != other[0] and are_lists):
            check(route, model, sample, (one, other))
