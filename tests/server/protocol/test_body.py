"""Every refusal names the field, what was expected and what was found."""

from __future__ import annotations

import json

import pytest

from rtpjax.errors import RequestError
from server.protocol.body import parse_body
from server.protocol.chat import ChatRequest
from server.protocol.completions import CompletionRequest

USER = {"role": "user", "content": "hi"}


def chat(**fields: object) -> ChatRequest:
    body = {"messages": [USER], **fields}
    return parse_body(json.dumps(body).encode(), ChatRequest)


REFUSED = [
    ({"temperature": "0.5"}, "temperature", "found the string '0.5'"),
    ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
    ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
    ({"temperature": True}, "temperature", "found true"),
    ({"top_p": -0.1}, "top_p", "greater than or equal to 0"),
    ({"top_k": 1.0}, "top_k", "integer"),
    ({"min_p": 2}, "min_p", "less than or equal to 1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
    ({"presence_penalty": 3}, "presence_penalty", "less than or equal to 2"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": -5}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": True}, "max_tokens", "found true"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "greater than or equal to 1"),
    ({"max_tokens": 10**400}, "max_tokens", "less than or equal to"),
    ({"seed": 2**63}, "seed", "less than or equal to"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"stop": ["a"] * 17}, "stop", "at most 16 items, found a list of 17"),
    ({"stop": [""]}, "stop[0]", "at least 1 character"),
    ({"stop": ""}, "stop[0]", "at least 1 character"),
    ({"stop": 5}, "stop", "found 5"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "token ids as keys"),
    ({"logit_bias": {"1": 101}}, "logit_bias[1]", "less than or equal to 100"),
    ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "at most 300"),
    ({"logprobs": 5}, "logprobs", "boolean"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"top_logprobs": 2}, "top_logprobs", "logprobs is true"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream is true"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown field"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"temprature": 1}, "temprature", "unknown field"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "unknown field"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
    ({"functions": [{"nam": "f"}]}, "functions[0].name", "found null"),
    ({"tool_choice": "required"}, "tool_choice", "no functions to call"),
    ({"modalities": ["text", "audio"]}, "modalities", "only text"),
    ({"messages": []}, "messages", "at least 1 items, found an empty list"),
    ({"messages": "hi"}, "messages", "found the string 'hi'"),
    ({"messages": [USER, 5]}, "messages[1]", "found 5"),
    ({"messages": [USER, {"content": "x"}]}, "messages[1].role", "required"),
    ({"messages": [{"role": "bob", "content": "x"}]}, "messages[0].role", "found the string 'bob'"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "without a call"),
    ({"messages": [USER, {"role": "user"}]}, "messages[1].content", "required"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "required"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "found 5"),
    ({"messages": [USER | {"mood": "x"}]}, "messages[0].mood", "unknown field"),
    (
        {"messages": [USER | {"content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
        "only 'text' parts",
    ),
]


@pytest.mark.parametrize(("fields", "param", "message"), REFUSED)
def test_refuses(fields: dict[str, object], param: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        chat(**fields)
    assert error.value.param == param
    assert str(error.value).startswith(param)
    assert message in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "empty"),
        (b"{", "not valid JSON"),
        (b"[]", "JSON object, found an empty list"),
        (b'{"messages": [], "temperature": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "Infinity"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', "temperature"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "number"),
        (b'{"messages": "\xff"}', "UTF-8"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        (b'{"messages": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_refuses_what_is_no_proper_json(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_body(body, ChatRequest)


def test_absent_and_neutral_fields_are_accepted() -> None:
    neutral = chat(tools=[], functions=None, tool_choice="none", top_logprobs=0)
    assert not neutral.tools
    assert not neutral.functions
    assert chat(modalities=["text"], stop=None, stream_options=None, temperature=None) == chat()


def test_the_smaller_of_the_two_token_limits_wins() -> None:
    assert chat(max_tokens=9, max_completion_tokens=5).max_new_tokens == 5
    assert chat(max_tokens=4, max_completion_tokens=5).max_new_tokens == 4
    assert chat(max_completion_tokens=5).max_new_tokens == 5
    assert chat().max_new_tokens is None


def test_defaults_are_rtp_llms() -> None:
    body = chat()
    assert (body.temperature, body.top_p, body.n) == (0.7, 1.0, 1)


def test_messages_become_plain_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(
        messages=[
            {"role": "developer", "content": "d"},
            {"role": "user", "content": parts, "name": "eve"},
            {"role": "assistant", "content": "x", "reasoning": "r", "tool_calls": None},
        ]
    )
    assert body.messages == [
        {"role": "system", "content": "d"},
        {"role": "user", "content": "a\nb", "name": "eve"},
        {"role": "assistant", "content": "x", "reasoning_content": "r"},
    ]


def test_an_assistant_message_as_clients_dump_it_goes_back() -> None:
    dumped = {
        "role": "assistant",
        "content": "hello",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "reasoning_content": None,
    }
    assert chat(messages=[USER, dumped]).messages[1] == {"role": "assistant", "content": "hello"}


def test_sampling_params_carry_every_field() -> None:
    fields = {
        "min_tokens": 2,
        "temperature": 0.5,
        "top_k": -1,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 7,
        "logit_bias": {"3": 1.5},
        "stop": "end",
        "stop_token_ids": [4],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }
    params = chat(**fields).sampling_params(2, max_tokens=8, logprobs=1, vocab_size=10)
    expected = fields | {
        "max_tokens": 8,
        "logprobs": 1,
        "top_k": 0,
        "seed": 9,
        "logit_bias": ((3, 1.5),),
        "stop": ("end",),
        "stop_token_ids": (4,),
    }
    assert {name: getattr(params, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"logit_bias": {"10": 1}}, "logit_bias"), ({"stop_token_ids": [10]}, "stop_token_ids")],
)
def test_token_ids_outside_the_vocabulary(fields: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError, match="outside the vocabulary of 10") as error:
        chat(**fields).sampling_params(0, max_tokens=None, logprobs=None, vocab_size=10)
    assert error.value.param == param


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_four_kinds_of_prompt(prompt: object, expected: object) -> None:
    body = parse_body(json.dumps({"prompt": prompt}).encode(), CompletionRequest)
    assert body.prompts == expected
    assert body.max_tokens == 16


@pytest.mark.parametrize("prompt", [[], 5, [[]], [1, "a"], [True], {"a": 1}, ["a", None]])
def test_prompts_that_are_none(prompt: object) -> None:
    with pytest.raises(RequestError, match="prompt"):
        parse_body(json.dumps({"prompt": prompt}).encode(), CompletionRequest)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_completions_refuse(fields: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_body(json.dumps({"prompt": "a", **fields}).encode(), CompletionRequest)
    assert error.value.param == param


@pytest.mark.parametrize("name", ["temperature", "seed", "n", "stop_token_ids", "logit_bias"])
def test_numbers_of_thousands_of_digits_are_out_of_range(name: str) -> None:
    number = "1" * 4300
    value = {"stop_token_ids": f"[{number}]", "logit_bias": f'{{"7": {number}}}'}.get(name, number)
    body = f'{{"messages": [{{"role": "user", "content": "hi"}}], "{name}": {value}}}'
    with pytest.raises(RequestError, match=f"^{name}.*: "):
        parse_body(body.encode(), ChatRequest)
    with pytest.raises(RequestError, match="too many digits"):
        parse_body(body.replace(number, number + "1").encode(), ChatRequest)


def test_of_a_name_that_stands_twice_the_last_one_counts() -> None:
    """As in JavaScript and Python, which write most of the bodies there are."""
    user = '[{"role": "user", "content": "no", "content": "hi"}]'
    body = f'{{"messages": "no", "n": 2, "messages": {user}, "n": 3}}'
    parsed = parse_body(body.encode(), ChatRequest)
    assert (parsed.messages[0]["content"], parsed.n) == ("hi", 3)
    with pytest.raises(RequestError, match=r"^x: unknown field"):
        parse_body(body.replace('"n"', '"x"').encode(), ChatRequest)
