"""The classes of all fields that clients are known to send and that are not honoured.

One table per API and per kind of object inside a body; the honoured fields are those of the models.
`docs/api.md` and the OpenAPI document list what stands here.

Sources: rtp_llm/openai/api_datatype.py and rtp_llm/config/generate_config.py of RTP-LLM (August
2026); the parameter types of openai-python and anthropic-python, which a test walks; the request
models of vLLM, SGLang and llama.cpp; what Claude Code, Codex CLI, the Vercel AI SDK, OpenRouter's
and LiteLLM's clients send.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.protocol.fields import FieldClass, Ignored, Refused

Classes = Mapping[str, FieldClass]


def each(names: str, found: FieldClass) -> dict[str, FieldClass]:
    return dict.fromkeys(names.split(), found)


def _only(reason: str, **neutral: Any) -> dict[str, FieldClass]:
    """Fields that share a reason; a tuple has several neutral values."""
    return {
        name: Refused(reason, value if isinstance(value, tuple) else (value,))
        for name, value in neutral.items()
    }


CACHED = Ignored("prefixes are cached without being asked to be")

# Every body may have these.
EVERYWHERE: Classes = {
    **each("model", Ignored("one model is served, whatever it is called")),
    **each(
        "user metadata safety_identifier client_metadata trace_id chat_id request_id rid"
        " session_id extend_fields master_info custom_labels",
        Ignored("it says who asks, or what the request is called"),
    ),
    **each("private_request", Ignored("texts are never logged")),
    **each("store", Ignored("nothing is stored")),
    **each("service_tier", Ignored("there is one; `priority` orders requests")),
    **each("prompt_cache_key prompt_cache_options prompt_cache_retention cache_control", CACHED),
}

_MEDIA = Ignored("it says how images, audio and video are read, and only text is taken")
_PLACE = Ignored("it says where or in which steps an answer is computed")
_UNSAID = Ignored("it counts only together with a field that is refused")

# What vLLM, SGLang, llama.cpp and OpenRouter add to the APIs that generate.
_PEERS: Classes = {
    **each("prediction", Ignored("it only makes an answer come sooner")),
    **each(
        "mm_processor_kwargs media_io_kwargs return_mm_kwargs max_dynamic_patch min_dynamic_patch"
        " use_audio_in_video images_config",
        _MEDIA,
    ),
    **each(
        "bootstrap_host bootstrap_port bootstrap_room routed_dp_rank disagg_prefill_dp_rank"
        " data_parallel_rank ngram_corpus_id guided_decoding_backend stream_interval id_slot"
        " n_keep provider models route",
        _PLACE,
    ),
    **each(
        "mirostat_tau mirostat_eta dry_base dry_allowed_length dry_penalty_last_n"
        " dry_sequence_breakers xtc_threshold dynatemp_exponent repeat_last_n truncation_side"
        " routed_experts_start_len routed_experts_prompt_start",
        _UNSAID,
    ),
    **_only("ask for num_beams instead", use_beam_search=False),
    **_only("beams are compared by the mean of their tokens", length_penalty=1.0),
    **_only("early stopping of beams is not supported", early_stopping=False),
    **_only("blanks stand between special tokens as the tokenizer says",
            spaces_between_special_tokens=True),
    **_only("answers are text; ask for return_token_ids for the ids as well", detokenize=True),
    **_only("ask for return_token_ids instead",
            return_tokens_as_token_ids=False, return_prompt_token_ids=False, return_tokens=False),
    **_only("ask for debug_info instead", return_prompt_text=False, return_token_offsets=False),
    **_only("ask for aux_info instead", return_meta_info=False, timings_per_token=False,
            return_progress=False),
    **_only("usage has the number of cached tokens", return_cached_tokens_details=False),
    **_only("a prompt is never cut; send a shorter one", truncate_prompt_tokens=-1,
            transforms=([],)),
    **_only("prefixes are always reused; a cache_salt of its own keeps a request apart",
            cache_prompt=True, reuse_cache=True),
    **_only("ask for min_p, top_p or top_k instead", typical_p=1.0, mirostat=0, top_n_sigma=-1.0,
            dynatemp_range=0.0, xtc_probability=0.0, min_keep=0, samplers=([],)),
    **_only("ask for repetition_penalty or no_repeat_ngram_size instead", dry_multiplier=0.0,
            repeat_penalty=1.0),
    **_only("ask for max_tokens instead", n_predict=-1),
    **_only("ask for logprobs instead", n_probs=0, post_sampling_probs=False),
    **_only("ask for timeout_ms instead", t_max_predict_ms=0),
    **_only("ask for include_stop_str_in_output instead", no_stop_trim=False),
    **_only("ask for response_format instead", grammar="", regex="", ebnf="", json_schema=({},),
            structural_tag=({},)),
    **_only("send it as cache_salt", extra_key=""),
    **_only("an answer ends at strings, `stop`", stop_regex=("", [])),
    **_only("answers cannot be watermarked", watermarking=False),
    **_only("caches are not handed from server to server", kv_transfer_params=({},),
            ec_transfer_params=({},)),
    **_only("extensions cannot be loaded", vllm_xargs=({},), custom_params=({},),
            custom_logit_processor="", logits_processors=([],), plugins=([],)),
    **_only("sessions are not kept; send the whole conversation", session_params=({},)),
    **_only("LoRA adapters are not supported", adapter_name=("", []), lora_path=("", []),
            lora=([],)),
    **_only("the experts that tokens go to are not given out", return_routed_experts=False),
    **_only("hidden states are not given out", return_hidden_states=False),
    **_only("logits are not given out; ask for logprobs", return_logits=False),
    **_only("only the raw API answers with it; ask for prompt_logprobs",
            calculate_loss=(0, False)),
    **each("logprob_token_ids", Refused("ask for top_logprobs instead")),
    **each("repetition_detection", Refused("ask for no_repeat_ngram_size instead")),
    **each("guided_whitespace_pattern", Refused("white space in JSON is what the server allows")),
    **each("response_fields", Refused("an answer has all its fields", ([],))),
    **each("prompt_embeds", Refused("prompts are text or token ids", ([],))),
}  # fmt: skip

# Of APIs with a conversation: how the answer reads, which a model cannot be held to.
VERBOSITY = Ignored(
    "no chat template has a switch for it; say in the prompt how long the answer shall be",
    ("low", "medium", "high"),
    is_logged=True,
)
_NO_SEARCH = "there is no web search; offer a function that searches"
_NO_MODERATION = Refused("nothing is moderated here; check texts before and after")
_STORED = Refused("nothing is stored here; send the whole conversation")

_CONVERSATION: Classes = {
    **_only("reasoning is always told apart from the answer", separate_reasoning=True,
            stream_reasoning=True, reasoning_in_content=False,
            reasoning_format=("auto", "deepseek")),
    **_only("calls are always told apart from the answer", parse_tool_calls=True),
    **_only("templates write the special tokens", add_special_tokens=False),
    **_only("put documents into the messages", documents=([],)),
    **_only("send token ids as the prompt of /v1/completions", input_ids=([],)),
    **_only(_NO_SEARCH, enable_search=False),
    **each("web_search_options", Refused(_NO_SEARCH)),
    **each("moderation", _NO_MODERATION),
    **each("task", Refused("say in the messages what to do")),
}  # fmt: skip

CHAT: Classes = {
    **EVERYWHERE,
    **_PEERS,
    **_CONVERSATION,
    "verbosity": VERBOSITY,
    "audio": Ignored("it says how audio output sounds, and modalities with audio is refused"),
    "modalities": Refused("only text can be generated", (["text"],)),
    **_only("the answer never repeats the conversation", echo=False),
    **_only("ask for n instead", best_of=1),
    **_only("log-probabilities are those before temperature and filters",
            logprobs_mode="original"),
    **each("max_output_tokens", Refused("send it as max_tokens")),
    **each("previous_response_id conversation", _STORED),
}  # fmt: skip

COMPLETIONS: Classes = {
    **EVERYWHERE,
    **_PEERS,
    "suffix": Refused("inserting before a suffix is not supported", ("",)),
    **each("chat_template_kwargs add_generation_prompt", Ignored("no chat template is rendered")),
    **each("max_completion_tokens max_output_tokens", Refused("send it as max_tokens")),
}

RESPONSES: Classes = {
    **EVERYWHERE,
    **_PEERS,
    **_CONVERSATION,
    "access_programs": Ignored("it is about access to OpenAI's models"),
    "image": _MEDIA,
    "background": Refused("answers are made while the caller waits", (False,)),
    "background_options": _UNSAID,
    "context_management": Ignored(
        "the conversation is taken as it comes, and one that is too long is a 400", is_logged=True
    ),
    **each("previous_response_id conversation prompt", _STORED),
    **_only("the answer has what the model wrote only", enable_response_messages=False),
    **each("max_tokens max_completion_tokens", Refused("send it as max_output_tokens")),
    **each("n", Refused("there is one answer; /v1/chat/completions takes n", (1,))),
    **each("verbosity", Refused("send it as text.verbosity")),
    **each("reasoning_effort", Refused("send it as reasoning.effort")),
    **each("response_format", Refused("send it as text.format")),
}

_THREAD = Refused(
    "conversations are not held here; send the whole one without `thread`",
    details={"error_code": "thread_unsupported_request", "unsupported": ["thread"]},
)
COUNT_TOKENS: Classes = {
    **EVERYWHERE,
    **each(
        "betas user_profile_id workspace_id billing_policy",
        Ignored("it is about access to Anthropic's models"),
    ),
    "inference_geo": _PLACE,
    "speed": Ignored("there is one speed", ("standard", "fast")),
    "context_management": Ignored(
        "the conversation is taken as it comes, and one that is too long is a 400", is_logged=True
    ),
    "mcp_servers": Refused("call MCP servers from the client, and offer their tools", ([],)),
    "compaction": Ignored("it does not change what is counted"),
}
MESSAGES: Classes = {
    **COUNT_TOKENS,
    "compaction": Refused("ask for a summary in a message"),
    "container": Refused("no code is run here"),
    "prefill": Refused("end the conversation with a message of the assistant", ("", False)),
    "diagnostics": Ignored("it asks why Anthropic's cache missed"),
    **each("fallbacks fallback_credit_token", Ignored("no request is declined for policy")),
    "thread": _THREAD,
}

# Of objects that models check.
_WHOLE_REASONING = Ignored("the answer has all of it", ("auto", "concise", "detailed"))
TEXT: Classes = {"verbosity": VERBOSITY}
REASONING: Classes = {
    **each("summary generate_summary", _WHOLE_REASONING),
    "context": Refused("the chat template decides which reasoning is shown again", ("auto",)),
    "mode": Refused("there is one mode", ("standard",)),
}
OPENROUTER_REASONING: Classes = {
    "summary": _WHOLE_REASONING,
}
CHAT_THINKING: Classes = each("clear_thinking", Refused("the chat template decides", (True,)))

THINKING: Classes = {
    "block_binding": Ignored("the signatures of thinking are not looked at"),
}
OUTPUT_CONFIG: Classes = {
    "task_budget": Ignored(
        "no chat template tells the model of it; max_tokens is kept to", is_logged=True
    ),
}

# RTP-LLM's generate config.
_ITS_SPEED = Ignored("it is about the speed of RTP-LLM's engine")
GENERATE_CONFIG: Classes = {
    **EVERYWHERE,
    **each(
        "max_input_tokens pad_token_id bos_token_id md5_value is_streaming",
        Ignored("RTP-LLM's engine does not look at it either"),
    ),
    **each(
        "sp_advice_prompt sp_advice_prompt_token_ids can_use_pd_separation enable_memory_cache"
        " enable_memory_block_cache enable_remote_cache sync_wait_write"
        " profile_step profile_trace_name",
        _ITS_SPEED,
    ),
    **each("role_addrs", _PLACE),
    **each(
        "traffic_reject_priority qos_priority inter_request_id global_request_id unique_key"
        " group_timeout",
        Ignored("it is for the scheduler before the server"),
    ),
    **each(
        "resized_shape max_pixels min_pixels fps min_frames max_frames crop_positions mm_timeout_ms"
        " add_vision_id",
        _MEDIA,
    ),
    **each(
        "top_p_min top_p_reset_ids logits_index prompt_logits_top_k prompt_logits_start"
        " prompt_logits_end return_target_logprob hidden_states_cut_dim normalized_hidden_states"
        " cross_seq_diverge_start_combo",
        _UNSAID,
    ),
    **_only("say enable_thinking in chat_template_kwargs", in_think_mode=False, thinking_mode=0),
    **_only("the marks of reasoning are found from the chat template",
            begin_think_token_ids=([],), end_think_token_ids=([],)),
    **_only("ask for num_beams instead", variable_num_beams=([],)),
    **_only("ask for bad_words_list or no_repeat_ngram_size instead", combo_token_size=0,
            banned_combo_token_ids=([],), auto_parse_banned_combo=False,
            enable_cross_sequence_ban=False),
    **_only("ask for top_p alone", top_p_decay=1.0),
    **_only("there is one sampler", using_hf_sampling=False),
    **_only("ask for timeout_ms instead", ttft_timeout_ms=(-1, 0)),
    **_only("prompts that are put before others are not kept here; send them", task_id=""),
    **_only("send a conversation as messages", request_format="raw"),
    **_only("say it as response_format", json_schema=(), regex="", ebnf="", structural_tag=()),
    **_only("logits are not given out; ask for logprobs or prompt_logprobs", return_logits=False,
            output_logits=False, return_prompt_logits=False, return_cum_log_probs=False,
            return_all_probs=(False, 0), return_softmax_probs=False, select_tokens_str=([],),
            select_tokens_id=([],)),
    **_only("hidden states are not given out", return_hidden_states=False,
            output_hidden_states=False, return_all_hidden_states=False),
    **_only("ask for return_token_ids, or in the raw API return_input_ids", output_input_ids=False),
    **_only("its own stop words are `stop_words_list`", eos_token_id=-1),
    **_only("there is nothing like it here", sp_edit=False, force_sp_accept=False, out_prefix="",
            custom_prop=("{}", "")),
    **_only("timelines are not written; bench/ has a profile", gen_timeline=False),
    **_only("prefixes are always reused; a cache_salt of its own keeps a request apart",
            reuse_cache=True, enable_device_cache=True),
    **_only("a call that cannot be parsed comes back as text",
            tool_call_message_extract_strategy="default"),
    **_only("LoRA adapters are not supported", adapter_name=("", [])),
}  # fmt: skip
EXTRA_CONFIGS: Classes = {
    **GENERATE_CONFIG,
    "return_incremental": Ignored("chunks of these APIs always have what is new"),
    **_only("only the raw API answers with it; ask for prompt_logprobs",
            calculate_loss=(0, False)),
    **_only("ask for return_token_ids", return_input_ids=False),
    **_only("streams are asked for with stream", yield_generator=False),
}  # fmt: skip
RAW: Classes = {
    **GENERATE_CONFIG,
    "source": Ignored("it says who asks, or what the request is called"),
    "__request_id__": Ignored("it says who asks, or what the request is called"),
    **_only("only text is taken", urls=([],), images=([],)),
    **_only("offer functions to /v1/chat/completions", functions=([],), tools=([],)),
}  # fmt: skip

TOKENIZE: Classes = {
    **EVERYWHERE,
    **each("content", Refused("send the text as prompt")),
    **each("add_special", Refused("send it as add_special_tokens")),
    **each("with_pieces", Refused("send it as return_token_strs", (False,))),
    **each("parse_special", Refused("special tokens in a text are always found", (True,))),
    **each("mm_processor_kwargs media_io_kwargs", _MEDIA),
}
