"""Fields that RTP-LLM and vLLM add to OpenAI's reach the prompt and the engine, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

from rtpjax.engine.request import GenerationRequest
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import ScriptedEngine

USER = {"role": "user", "content": "hi"}


def seen(server: LiveServer, engine: ScriptedEngine, **fields: Any) -> GenerationRequest:
    response = server.client.post(
        "/v1/chat/completions", json={"messages": [USER], "max_tokens": 1} | fields
    )
    assert response.status_code == 200, response.text
    return engine.seen[-1]


def prompt(server: LiveServer, engine: ScriptedEngine, **fields: Any) -> str:
    return engine.tokenizer.decode(seen(server, engine, **fields).prompt_token_ids)


def test_extra_configs_stand_behind_the_fields(engine: ScriptedEngine) -> None:
    config = {
        "max_new_tokens": 3,
        "min_new_tokens": 2,
        "top_k": 9,
        "top_p": 0.5,
        "temperature": 0.25,
        "repetition_penalty": 1.5,
        "random_seed": [5],
        "stop_words_str": ["a"],
        "stop_words_list": [[1], [2], [3, 4]],
        "no_repeat_ngram_size": 3,
        "timeout_ms": 1500,
        "bad_words_list": [[3, 4]],
        "print_stop_words": True,
    }
    with LiveServer(engine) as server:
        found = seen(server, engine, max_tokens=None, extra_configs=config).sampling
        assert (found.max_tokens, found.min_tokens, found.top_k, found.top_p) == (3, 2, 9, 0.5)
        assert (found.temperature, found.repetition_penalty, found.seed) == (0.25, 1.5, 5)
        assert (found.stop, found.stop_token_ids) == (("a",), (1, 2))
        assert (found.stop_sequences, found.no_repeat_ngram_size) == (((3, 4),), 3)
        assert engine.seen[-1].timeout_s == 1.5
        assert (found.bad_words, found.include_stop_str_in_output) == (((3, 4),), True)
        found = seen(server, engine, max_tokens=4, top_k=1, extra_configs=config).sampling
        assert (found.max_tokens, found.top_k, found.top_p) == (4, 1, 0.5)
        fields = {"max_tokens": None, "max_completion_tokens": 7, "extra_configs": config}
        assert seen(server, engine, **fields).sampling.max_tokens == 7
        assert seen(server, engine, extra_configs={"do_sample": False}).sampling.temperature == 0
        seen(server, engine, extra_configs={"num_return_sequences": 2})
        assert len(engine.seen) == 6


def test_words_and_tokens(engine: ScriptedEngine) -> None:
    with LiveServer(engine) as server:
        found = seen(server, engine, bad_words=["ab", " c"], allowed_token_ids=[5, 6, 5]).sampling
    encode = engine.tokenizer.encode
    assert found.bad_words == tuple(tuple(encode(word)) for word in ("ab", " ab", " c"))
    assert found.allowed_token_ids == (5, 6)


def test_where_the_prompt_ends(engine: ScriptedEngine) -> None:
    asked = "<|im_start|>user\nhi<|im_end|>\n"
    begun = [USER, {"role": "assistant", "content": "Well, "}]
    partial = [USER, {"role": "assistant", "content": "Well, ", "partial": True}]
    with LiveServer(engine) as server:
        assert prompt(server, engine, add_generation_prompt=False) == asked
        assert prompt(server, engine, add_generation_prompt=True).endswith("assistant\n")
        closed = prompt(server, engine, messages=begun, add_generation_prompt=False)
        assert closed.endswith("Well, <|im_end|>\n")
        opened = asked + "<|im_start|>assistant\nWell, "
        assert prompt(server, engine, messages=begun, continue_final_message=True) == opened
        assert prompt(server, engine, messages=partial) == opened


def test_thinking_reaches_the_template() -> None:
    engine = ScriptedEngine(template="{{ enable_thinking }}{{ messages[0].content }}")
    with LiveServer(engine) as server:
        assert prompt(server, engine, enable_thinking=False) == "Falsehi"
        kwargs = {"enable_thinking": True}
        assert prompt(server, engine, chat_template_kwargs=kwargs) == "Truehi"
        assert (
            prompt(server, engine, enable_thinking=False, chat_template_kwargs=kwargs) == "Falsehi"
        )


def test_a_template_of_the_request_needs_the_operators_word(engine: ScriptedEngine) -> None:
    with LiveServer(engine, allow_user_template=True) as server:
        assert prompt(server, engine, user_template="Q: {{ messages[0].content }}") == "Q: hi"
        refused = server.chat(user_template="{% for %}")
        assert refused.json()["error"]["param"] == "user_template"
        assert prompt(server, engine).startswith("<|im_start|>")


ASSISTANT = {"role": "assistant", "content": "x"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"user_template": "x"}, "user_template"),
        ({"template_key": "x"}, "template_key"),
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"extra_configs": {"top_k": "x"}}, "extra_configs.top_k"),
        ({"extra_configs": {"num_beams": 11}}, "extra_configs.num_beams"),
        ({"extra_configs": {"bad_words_list": [[]]}}, "extra_configs.bad_words_list[0]"),
        ({"extra_configs": {"random_seed": [1, 2]}}, "extra_configs.random_seed"),
        ({"extra_configs": []}, "extra_configs"),
        ({"bad_words": ["x" * 9]}, "bad_words[0]"),
        ({"bad_words": ["x"] * 33}, "bad_words"),
        ({"bad_words_list": [[10**6]]}, "bad_words_list"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [10**6]}, "allowed_token_ids"),
        ({"allowed_token_ids": [1] * 257}, "allowed_token_ids"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"messages": [USER | {"partial": True}]}, "messages[0].partial"),
        ({"messages": [ASSISTANT | {"partial": True}, USER]}, "messages[0].partial"),
        ({"messages": [ASSISTANT | {"partial": 1}]}, "messages[0].partial"),
        (
            {
                "messages": [ASSISTANT],
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "add_generation_prompt",
        ),
        ({"no_repeat_ngram_size": 129}, "no_repeat_ngram_size"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"no_repeat_ngram_size": 2, "num_beams": 2}, "no_repeat_ngram_size"),
        ({"stop_words_list": [[]]}, "stop_words_list[0]"),
        ({"stop_words_list": [[1, 10**6]]}, "stop_words_list"),
        ({"stop_words_list": [[1] * 65]}, "stop_words_list[0]"),
        ({"timeout_ms": -2}, "timeout_ms"),
        ({"timeout_ms": 1, "num_beams": 2}, "timeout_ms"),
        ({"calculate_loss": 1}, "calculate_loss"),
    ],
)
def test_refuses(server: LiveServer, fields: dict[str, Any], param: str) -> None:
    response = server.client.post("/v1/chat/completions", json={"messages": [USER]} | fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


HI = {"role": "user", "content": "hi"}
# Where tokens are asked for, with what a caller may write there.
LIMITS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [HI], "max_tokens": 10**6}),
    ("/v1/chat/completions", {"messages": [HI], "max_completion_tokens": 10**6, "n": 2}),
    ("/v1/chat/completions", {"messages": [HI], "extra_configs": {"max_new_tokens": 32000}}),
    ("/v1/chat/completions", {"messages": [HI], "max_tokens": 9999, "min_tokens": 9000}),
    ("/v1/chat/completions", {"messages": [HI], "max_tokens": 9999, "num_beams": 2}),
    ("/v1/batch/chat/completions", {"requests": [{"messages": [HI], "max_tokens": 9999}] * 2}),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 512}),
    ("/v1/completions", {"prompt": [[5] * 511, [5] * 100], "max_tokens": 300}),
    ("/v1/completions", {"prompt": [5] * 511}),  # the default of 16 is no reason for a 400
    ("/v1/completions", {"prompt": "hi", "min_tokens": 40}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 10**6}),
    ("/v1/messages", {"messages": [HI], "max_tokens": 10**6}),
    ("/", {"prompt": "hi", "generate_config": {"max_new_tokens": 32000}}),
    ("/", {"prompt": [5] * 3 and "hi", "max_new_tokens": 512}),
    ("/batch_infer", {"prompt_batch": ["a", "b" * 511], "generate_config": {"gen_length": 9999}}),
]


@pytest.mark.parametrize(("path", "body"), LIMITS)
def test_tokens_asked_for_are_an_upper_bound(
    engine: ScriptedEngine, path: str, body: dict[str, Any]
) -> None:
    with LiveServer(engine) as server:
        response = server.client.post(path, json=body)
        assert response.status_code == 200, response.text
        assert not engine.aborted
        answer = response.json()
    for found in answer.get("responses", [answer]):
        if "usage" in found and "prompt_tokens" in found["usage"]:
            assert found["usage"]["total_tokens"] <= 512 * len(found["choices"])
        for choice in found.get("choices", []):
            assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("most", [None, 1, 10**6])
def test_only_the_prompt_is_a_reason_to_refuse(server: LiveServer, most: int | None) -> None:
    bodies = {
        "/v1/chat/completions": ({"messages": [HI | {"content": "x" * 600}]}, "max_tokens"),
        "/v1/completions": ({"prompt": [5] * 512}, "max_tokens"),
        "/v1/responses": ({"input": "x" * 600}, "max_output_tokens"),
        "/v1/messages": ({"messages": [HI | {"content": "x" * 600}]}, "max_tokens"),
        "/": ({"prompt": "x" * 512}, "max_new_tokens"),
    }
    for path, (body, name) in bodies.items():
        limit = {name: most or 9} if path == "/v1/messages" or most else {}
        response = server.client.post(path, json=body | limit)
        assert response.status_code == 400, path
        message = response.json()["error"]["message"]
        assert "context is 512 tokens" in message
        assert "max" not in message
