"""Every field that a client is known to send is classed, and each class is kept, on every API."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import anthropic.types.beta as claude
import openai.types.chat as chat
import openai.types.responses as responses
import pytest
from anthropic.types import message_count_tokens_params as count_params
from anthropic.types import message_create_params as message_params
from anthropic.types.beta import message_count_tokens_params as beta_count_params
from anthropic.types.beta import message_create_params as beta_params
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params
from openai.types.responses import response_input_param
from openai.types.shared_params import FunctionDefinition, Reasoning
from typing_extensions import is_typeddict

from rtpjax.errors import RequestError
from server import field_docs
from server.field_docs import APIS
from server.protocol.anthropic_messages import parse_count, parse_messages
from server.protocol.body import StrictModel, parse_body, shape_of
from server.protocol.chat import ChatRequest
from server.protocol.fields import (
    REFUSE,
    FieldClass,
    FieldPolicy,
    Ignored,
    Kinds,
    Refused,
    Shape,
)
from server.protocol.raw import parse_raw
from server.protocol.responses import parse_responses
from server.protocol.tokens import parse_tokenize
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import ScriptedEngine
from tests.server.speaking_engine import SpeakingEngine

# --- The SDKs' own types: a new field of a new version fails here until it is classed.


def names_of(kind: Any) -> set[str]:
    """The fields of a TypedDict, or of all in a union."""
    if is_typeddict(kind):
        return set(get_type_hints(kind))
    return {name for each in get_args(kind) for name in names_of(each)}


def at(api: str, *path: str) -> set[str]:
    """The classed fields of the objects at a path; a step `a:b` is field a, of type b."""
    inside: Any = shape_of(APIS[api])
    for step in path:
        name, _, kind = step.partition(":")
        inside = inside.honoured[name]
        if kind:
            inside = inside.shapes[kind]
    shapes = inside.shapes.values() if isinstance(inside, Kinds) else [inside]
    return {name for shape in shapes for name in (*shape.honoured, *shape.others)}


SDK_TYPES = [
    (chat_params.CompletionCreateParamsNonStreaming, at("chat")),
    (chat_params.CompletionCreateParamsStreaming, at("chat")),
    (chat.ChatCompletionMessageParam, at("chat", "messages")),
    (chat.ChatCompletionContentPartTextParam, at("chat", "messages", "content:text")),
    (chat.ChatCompletionContentPartRefusalParam, at("chat", "messages", "content:refusal")),
    (chat.ChatCompletionFunctionToolParam, at("chat", "tools:function")),
    (FunctionDefinition, at("chat", "tools:function", "function")),
    (chat.ChatCompletionStreamOptionsParam, at("chat", "stream_options")),
    (completion_params.CompletionCreateParamsNonStreaming, at("completions")),
    (completion_params.CompletionCreateParamsStreaming, at("completions")),
    (response_params.ResponseCreateParamsNonStreaming, at("responses")),
    (response_params.ResponseCreateParamsStreaming, at("responses")),
    (Reasoning, at("responses", "reasoning")),
    (responses.ResponseTextConfigParam, at("responses", "text")),
    (response_params.StreamOptions, at("responses", "stream_options")),
    (responses.FunctionToolParam, at("responses", "tools:function")),
    (responses.NamespaceToolParam, at("responses", "tools:namespace")),
    (responses.EasyInputMessageParam, at("responses", "input:message")),
    (responses.ResponseOutputMessageParam, at("responses", "input:message")),
    (responses.ResponseInputTextParam, at("responses", "input:message", "content:input_text")),
    (responses.ResponseOutputTextParam, at("responses", "input:message", "content:output_text")),
    (responses.ResponseOutputRefusalParam, at("responses", "input:message", "content:refusal")),
    (responses.ResponseFunctionToolCallParam, at("responses", "input:function_call")),
    (response_input_param.FunctionCallOutput, at("responses", "input:function_call_output")),
    (responses.ResponseReasoningItemParam, at("responses", "input:reasoning")),
    (message_params.MessageCreateParamsNonStreaming, at("messages")),
    (beta_params.MessageCreateParamsNonStreaming, at("messages")),
    (beta_params.MessageCreateParamsStreaming, at("messages")),
    (count_params.MessageCountTokensParams, at("count_tokens")),
    (beta_count_params.MessageCountTokensParams, at("count_tokens")),
    (claude.BetaOutputConfigParam, at("messages", "output_config")),
    (claude.BetaThinkingConfigEnabledParam, at("messages", "thinking")),
    (claude.BetaThinkingConfigAdaptiveParam, at("messages", "thinking")),
    (claude.BetaThinkingConfigDisabledParam, at("messages", "thinking")),
    (claude.BetaToolParam, at("messages", "tools:custom")),
    (claude.BetaTextBlockParam, at("messages", "messages", "content:text")),
    (claude.BetaTextBlockParam, at("messages", "system")),
    (claude.BetaThinkingBlockParam, at("messages", "messages", "content:thinking")),
    (claude.BetaToolUseBlockParam, at("messages", "messages", "content:tool_use")),
    (claude.BetaToolResultBlockParam, at("messages", "messages", "content:tool_result")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "classed"), SDK_TYPES, ids=lambda x: getattr(x, "__name__", ""))
def test_fields_of_the_sdks_are_classed(kind: Any, classed: set[str]) -> None:
    names = names_of(kind)
    assert names
    assert names - classed == set()


# RTP-LLM's own models with their defaults (rtp_llm/openai/api_datatype.py and
# rtp_llm/config/generate_config.py, August 2026): a client that writes one out sends all of it.
RTP_CHAT = {
    "model": None, "functions": None, "tools": None, "tool_choice": None, "reasoning_effort": None,
    "temperature": 0.7, "top_p": 1.0, "top_k": None, "max_tokens": None,
    "max_completion_tokens": None, "thinking_budget": None, "stop": [], "stream": False,
    "user": None, "seed": None, "n": None, "logprobs": None, "logprobs_mode": None,
    "top_logprobs": None, "prompt_logprobs": None, "response_format": None, "json_format": None,
    "extra_configs": None, "private_request": False, "trace_id": None, "chat_id": None,
    "template_key": None, "user_template": None, "debug_info": False, "aux_info": True,
    "extend_fields": None, "master_info": None, "chat_template_kwargs": None,
    "enable_thinking": None,
}  # fmt: skip
RTP_CONFIG = {
    "max_new_tokens": 32000, "max_input_tokens": 32000, "max_thinking_tokens": 32000,
    "in_think_mode": False, "thinking_mode": 0, "chat_template_kwargs": None,
    "begin_think_token_ids": [], "end_think_token_ids": [], "num_beams": 1,
    "variable_num_beams": [], "do_sample": True, "num_return_sequences": 0, "top_k": 0,
    "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "min_new_tokens": 0, "no_repeat_ngram_size": None,
    "combo_token_size": 0, "banned_combo_token_ids": [], "auto_parse_banned_combo": False,
    "enable_cross_sequence_ban": False, "cross_seq_diverge_start_combo": 0, "random_seed": None,
    "top_p_decay": None, "top_p_min": None, "top_p_reset_ids": None, "stop_words_str": [],
    "stop_words_list": [], "bad_words_list": None, "eos_token_id": None, "pad_token_id": None,
    "bos_token_id": None, "using_hf_sampling": False, "print_stop_words": False, "timeout_ms": -1,
    "ttft_timeout_ms": -1, "traffic_reject_priority": 100, "qos_priority": None, "chat_id": None,
    "task_id": None, "request_format": "raw", "response_format": None, "json_schema": None,
    "regex": None, "ebnf": None, "structural_tag": None, "calculate_loss": 0,
    "return_logits": False, "logits_index": None, "return_prompt_logits": False,
    "prompt_logits_top_k": 64, "prompt_logits_start": -1, "prompt_logits_end": -1,
    "return_target_logprob": True, "return_incremental": False, "return_hidden_states": False,
    "return_all_hidden_states": False, "hidden_states_cut_dim": 0,
    "normalized_hidden_states": False, "select_tokens_str": [], "select_tokens_id": [],
    "return_input_ids": False, "return_output_ids": False, "md5_value": "", "custom_prop": "{}",
    "sp_advice_prompt": "", "sp_advice_prompt_token_ids": [], "sp_edit": False,
    "force_disable_sp_run": False, "force_sp_accept": False, "return_cum_log_probs": False,
    "return_all_probs": 0, "return_softmax_probs": False, "aux_info": True,
    "can_use_pd_separation": True, "gen_timeline": False, "profile_step": 3,
    "profile_trace_name": "", "out_prefix": "", "role_addrs": [], "trace_id": "",
    "ignore_eos": False, "skip_special_tokens": False, "adapter_name": None, "is_streaming": False,
    "resized_shape": None, "max_pixels": None, "min_pixels": None, "fps": None, "min_frames": None,
    "max_frames": None, "crop_positions": None, "mm_timeout_ms": None, "add_vision_id": True,
    "tool_call_message_extract_strategy": "default", "global_request_id": -1, "reuse_cache": True,
    "enable_device_cache": True, "enable_memory_cache": True, "enable_remote_cache": True,
    "group_timeout": None, "unique_key": "", "json_format": False,
    # Of versions before.
    "inter_request_id": -1, "enable_memory_block_cache": True, "sync_wait_write": True,
}  # fmt: skip


def test_rtp_llms_fields_are_classed() -> None:
    assert RTP_CHAT.keys() - at("chat") == set()
    assert RTP_CONFIG.keys() - at("extra_configs") == set()
    assert RTP_CONFIG.keys() - at("raw") == set()


@pytest.mark.parametrize("where", ["extra_configs", "generate_config", "beside"])
def test_rtp_llms_config_is_taken_as_its_clients_write_it(server: LiveServer, where: str) -> None:
    config = RTP_CONFIG | {"max_new_tokens": 2}
    if where == "extra_configs":
        fields = RTP_CHAT | {"extra_configs": config, "messages": [USER]}
        response = server.client.post("/chat/completions", json=fields)
    elif where == "generate_config":
        fields = {"prompt": "hi", "generate_config": config}
        response = server.client.post("/", json=fields)
    else:
        response = server.client.post("/", json={"prompt": "hi"} | config)
    assert response.status_code == 200, response.text


# --- Each class is kept. The bodies have an object of every kind, so every field has its place.

USER = {"role": "user", "content": "hi"}
FUNCTION: dict[str, Any] = {"name": "f", "parameters": {"type": "object", "properties": {}}}
PARAMETERS = FUNCTION["parameters"]
TEXT: dict[str, Any] = {"type": "text", "text": "hi"}
CHAT_BODY = {
    "max_tokens": 2,
    "stream": True,
    "stream_options": {},
    "usage": {},
    "reasoning": {},
    "thinking": {"type": "disabled"},
    "chat_template_kwargs": {},
    "structured_outputs": {"json_object": False},
    "tools": [{"type": "function", "function": FUNCTION}],
    "messages": [
        {"role": "user", "content": [TEXT]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        USER,
    ],
}
LEGACY_BODY = {"max_tokens": 2, "functions": [FUNCTION], "messages": [USER]}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
RESPONSES_BODY = {
    "max_output_tokens": 2,
    "stream": True,
    "stream_options": {},
    "text": {},
    "reasoning": {},
    "chat_template_kwargs": {},
    "tools": [
        {"type": "function", **FUNCTION},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", **FUNCTION}]},
    ],
    "input": [
        {"role": "user", "content": [{"type": kind, "text": "hi"}]}
        for kind in ("input_text", "text")
    ]
    + [
        {
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "a"},
                {"type": "refusal", "refusal": "b"},
            ],
        },
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "r"}]},
        CALL,
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [{"type": "input_text", "text": "1"}],
        },
    ],
}
COUNT_BODY = {
    "system": [TEXT],
    "thinking": {"type": "adaptive"},
    "output_config": {"format": {"type": "json_schema", "schema": PARAMETERS}},
    "tools": [{"name": "f", "input_schema": PARAMETERS}],
    "tool_choice": {"type": "none"},
    "messages": [
        {"role": "user", "content": [TEXT]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c", "content": [TEXT]}],
        },
    ],
}
STREAMED = {"stream": True, "stream_options": {}}
CONFIG = {"max_new_tokens": 2}
COMPLETION = {"prompt": "hi", "max_tokens": 2, "structured_outputs": {"json_object": False}}
# The API, where it is, and a body.
BODIES: list[tuple[str, str, dict[str, Any]]] = [
    ("chat", "/v1/chat/completions", CHAT_BODY),
    ("chat", "/v1/chat/completions", LEGACY_BODY),
    ("completions", "/v1/completions", STREAMED | COMPLETION),
    ("responses", "/v1/responses", RESPONSES_BODY),
    ("messages", "/v1/messages", COUNT_BODY | {"max_tokens": 2}),
    ("count_tokens", "/v1/messages/count_tokens", COUNT_BODY),
    ("raw", "/", {"prompt": "hi", "max_new_tokens": 2}),
    ("extra_configs", "/v1/chat/completions", {"messages": [USER], "extra_configs": CONFIG}),
    ("tokenize", "/tokenize", {"prompt": "hi"}),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """One classed field at one place of a body."""

    keys: tuple[str | int, ...]
    name: str
    found: FieldClass | None  # None for a field that nobody knows

    @property
    def path(self) -> str:
        keys = [
            f"[{key}]" if isinstance(key, int) else f".{key}" for key in (*self.keys, self.name)
        ]
        return "".join(keys).removeprefix(".")

    @property
    def place(self) -> str:
        return ".".join(key for key in (*self.keys, self.name) if isinstance(key, str))

    def put(self, body: dict[str, Any], value: Any) -> dict[str, Any]:
        """The body with a value in the field."""
        body = json.loads(json.dumps(body))  # a copy in which nothing is shared
        inside: Any = body
        for key in self.keys:
            inside = inside[key]
        inside[self.name] = value
        return body


def cases(
    value: Any, inside: Shape | Kinds | None, keys: tuple[str | int, ...] = ()
) -> Iterator[Case]:
    """Every classed field in every object of a body, and an unknown one in each."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from cases(item, inside, (*keys, index))
        return
    if not isinstance(value, dict) or inside is None:
        return
    if isinstance(inside, Kinds):
        shape = inside.shapes[value.get("type", inside.default)]
    else:
        shape = inside
    for name, found in shape.others.items():
        yield Case(keys, name, found)
    if not shape.is_open:
        yield Case(keys, "nobody_knows_this", None)
    for name, within in shape.honoured.items():
        if name in value:
            yield from cases(value[name], within, (*keys, name))


def cases_of(api: str, body: dict[str, Any]) -> list[Case]:
    if api != "extra_configs":
        return list(cases(body, shape_of(APIS[api])))
    config = cases(body["extra_configs"], shape_of(APIS[api]), ("extra_configs",))
    return list(config)


def test_the_bodies_have_every_field() -> None:
    found = {
        (api, case.place.removeprefix("extra_configs."))
        for api, _, body in BODIES
        for case in cases_of(api, body)
        if case.found is not None
    }
    assert found == {(api, path) for api, path, _ in field_docs.fields()}


def meaning(api: str, body: dict[str, Any], policy: FieldPolicy = REFUSE) -> Any:
    """What a body means to the server."""
    content = json.dumps(body).encode()
    if api in ("chat", "extra_configs", "completions"):
        return _meant(parse_body(content, APIS["chat" if api == "extra_configs" else api], policy))
    if api == "responses":
        parsed = parse_responses(content, policy)
        return _meant(parsed.chat), parsed.request, parsed.tools
    if api == "raw":
        return parse_raw(content, policy, is_batch=False)
    parse = {"messages": parse_messages, "count_tokens": parse_count, "tokenize": parse_tokenize}
    return _meant(parse[api](content, policy))


def _meant(model: StrictModel) -> Any:
    calls = model.calls if isinstance(model, ChatRequest) else None
    # As it is given out: a field that says its default means what an absent one means.
    return model.model_dump(), calls


IDS = [f"{api}{index}" for index, (api, _, _) in enumerate(BODIES)]


@pytest.mark.parametrize(("api", "body"), [(api, body) for api, _, body in BODIES], ids=IDS)
def test_classes_are_kept(api: str, body: dict[str, Any]) -> None:
    plain = meaning(api, body)
    for case in cases_of(api, body):
        accepted: tuple[Any, ...] = (None,)
        refused: tuple[Any, ...] = ()
        match case.found:
            case Ignored(values=()):
                accepted = (None, "x", 7, True, [], {"a": [1]})
            case Ignored(values=values):
                accepted, refused = (None, *values), ({"odd": 1},)
            case Refused(neutral=neutral, neutral_item=item):
                accepted = (None, *neutral, *([["y", item]] if item else []))
                refused = ({"odd": 1}, "odd", 0.125, ["odd"])
            case None:
                accepted, refused = (None,), (1, {})
        for value in accepted:
            assert meaning(api, case.put(body, value)) == plain, case.path
        for value in refused:
            with pytest.raises(RequestError) as error:
                meaning(api, case.put(body, value))
            assert error.value.param == case.path
            assert str(error.value).startswith(f"{case.path}: ")


@pytest.mark.parametrize(("api", "body"), [(api, body) for api, _, body in BODIES], ids=IDS)
def test_unknown_fields_can_be_ignored_at_any_depth(
    api: str, body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    policy = FieldPolicy(ignores_unknown=True)
    plain = meaning(api, body, policy)
    unknown = [case for case in cases_of(api, body) if case.found is None]
    for case in unknown:
        for value in (1, {"a": 1}, "x"):
            assert meaning(api, case.put(body, value), policy) == plain
    for case in cases_of(api, body):  # the policy is for unknown fields only
        if isinstance(case.found, Refused):
            with pytest.raises(RequestError):
                meaning(api, case.put(body, {"odd": 1}), policy)
    lines = [r.getMessage() for r in caplog.records if "nobody_knows_this" in r.getMessage()]
    assert len(lines) == len({case.place for case in unknown})


@pytest.mark.parametrize(("api", "url", "body"), BODIES, ids=IDS)
def test_the_routes_keep_them(api: str, url: str, body: Any) -> None:
    """All that is accepted, in one body: the engine gets the same requests, for the same answer."""

    def seen(body: dict[str, Any]) -> tuple[Any, ...]:
        engine.seen.clear()
        response = server.client.post(url, json=body)
        assert response.status_code == 200, response.text
        return tuple(dataclasses.replace(r, request_id="") for r in engine.seen) or response.text

    full = body
    for case in cases_of(api, body):
        match case.found:
            case Ignored(values=values):
                full = case.put(full, values[0] if values else "x")
            case Refused(neutral=(first, *_)):
                full = case.put(full, first)
            case None:
                full = case.put(full, {"x": 1})
    engine = SpeakingEngine("ok")
    with LiveServer(engine, ignores_unknown_fields=True) as server:
        assert seen(full) == seen(body)


def test_the_log_is_bounded(engine: ScriptedEngine, caplog: pytest.LogCaptureFixture) -> None:
    with LiveServer(engine, ignores_unknown_fields=True) as server:
        for start in range(0, 1000, 100):
            fields = {f"{'x' * 100}{index}": 1 for index in range(start, start + 100)}
            fields |= {f"y{index}": 1 for index in range(start, start + 100)}
            assert server.chat(max_tokens=1, **fields).status_code == 200
    lines = [r.getMessage() for r in caplog.records if "UNKNOWN_FIELDS" in r.getMessage()]
    assert 0 < len(lines) <= 256
    assert max(map(len, lines)) < 250


def test_the_docs_have_all_of_it() -> None:
    """`python -m server.field_docs` writes them."""
    text = field_docs.DOCS.read_text()
    assert field_docs.written(text) == text


def test_the_openapi_document_has_what_is_accepted(server: LiveServer) -> None:
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]
    for model in APIS.values():
        properties = schemas[model.__name__]["properties"]
        for name, found in shape_of(model).others.items():
            assert (name in properties) == (isinstance(found, Ignored) or bool(found.neutral))
