"""What crosses the engine's border: plain, picklable records. No jax, no tokenizer, no HTTP."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]
ErrorKind = Literal["engine", "request", "timeout", "queue_full", "draining"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen and when it ends.

    Attributes:
        max_tokens: Most tokens to generate, if the context has room for them; None means as many
            as it has room for.
        min_tokens: No stop string, token or sequence and no eos ends the request before this many
            tokens.
        temperature: 0 is greedy; else logits are divided by it. Range 0 to 2.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of tokens whose probability reaches this. Range (0, 1].
        min_p: Drop tokens less likely than this fraction of the most likely one. Range [0, 1].
        repetition_penalty: Divides positive and multiplies negative logits of tokens seen in prompt
            or output (CTRL, https://arxiv.org/abs/1909.05858). 1 is off.
        presence_penalty: Subtracted once from the logit of each token in the output.
        frequency_penalty: Subtracted per occurrence from the logit of each token in the output.
        seed: Makes the draws repeatable; None draws a seed.
        logit_bias: (token id, added to its logit) pairs.
        stop: Strings that end the request; not part of the text unless include_stop_str_in_output.
        stop_token_ids: Tokens that end the request, besides the model's own eos tokens.
        ignore_eos: Generate through the model's eos tokens.
        include_stop_str_in_output: Leave the stop string that ended the request in the text.
        skip_special_tokens: Leave special tokens out of the text.
        logprobs: None for none; k for the sampled token's log-probability and the k most likely
            ones. They are the model's own log-softmax, before temperature, penalties and filters.
        prompt_logprobs: None for none; k for the log-probability of each prompt token after the
            first, and the k most likely ones in its place.
        bad_words: Token sequences that the output never completes, unless the grammar leaves
            nothing else.
        no_repeat_ngram_size: No n-gram of this many tokens comes twice in prompt and output, unless
            the grammar leaves nothing else; 0 is off.
        allowed_token_ids: The only tokens that can be generated; empty allows all. A grammar that
            can go on with none of them ends the request: with "stop" where it may end, else with an
            error.
        stop_sequences: Token sequences that end the request; not part of the text unless
            include_stop_str_in_output.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    no_repeat_ngram_size: int = 0
    allowed_token_ids: tuple[int, ...] = ()
    stop_sequences: tuple[tuple[int, ...], ...] = ()


# For schemas inside a lark grammar, as their "x-guidance"; others get it by themselves. White space
# is a space, or a line break and its indentation: what models write. Weak models never leave an
# unbounded one.
JSON_OPTIONS = {"whitespace_pattern": r"[ ]?|\n[ ]{0,32}"}


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the output must look like; the engine refuses one that it cannot hold to.

    Attributes:
        kind: How to read the text: "json_schema" and "json_object" (a schema, or nothing),
            "regex", "lark" (llguidance's dialect, which embeds schemas as `%json {...}`), "ebnf"
            (llama.cpp's GBNF), or "structural_tag" (free text with constrained parts: JSON
            `[{"trigger", "begin", "schema", "end"}, ...]`; a part opens when the text has its
            trigger, and begins with `begin`).
        text: The schema, expression or grammar.
        after: The constraint starts once the output has this text ("</think>"); the end may not
            come before it. None starts at once.
        param: The request's field that errors name.
        marks: For "lark": texts that the grammar calls `mark_0`, `mark_1`, .. Each is a special
            token where the tokenizer has one of its name, else its text. A line of the grammar
            that begins with `+mark_0 ` counts in the former case, with `-mark_0 ` in the latter.
        triggers: For "lark": the output is free text. After the text of trigger i it goes on with
            the grammar's rule `part_i`, and then freely again.
        is_at_start: Triggers count only where the output begins.
        instead: What the output may be in place of all this.
        is_flat: The rules do not name each other in a long chain, so there may be any number.
    """

    kind: Literal["json_schema", "json_object", "regex", "lark", "ebnf", "structural_tag"]
    text: str = ""
    after: str | None = None
    param: str = "response_format"
    marks: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    is_at_start: bool = False
    instead: Grammar | None = None
    is_flat: bool = False

    @property
    def is_free_text(self) -> bool:
        """Whether only parts of the output are constrained."""
        return self.kind == "structural_tag" or bool(self.triggers)


@dataclass(frozen=True, slots=True)
class ReasoningLimit:
    """How long the model may reason; the end of its reasoning is forced then.

    Attributes:
        max_tokens: Most tokens between the marks, white space included. A character that is not
            complete then is completed first.
        opens, closes: The marks.
        is_open: The prompt ends inside the reasoning.
        reopens: Reasoning may open anywhere in the output, and again; else only where it begins.
    """

    max_tokens: int
    opens: str
    closes: str
    is_open: bool = False
    reopens: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate.

    Attributes:
        request_id: Unique among the requests in flight.
        prompt_token_ids: At least one token.
        sampling: How to sample and when to stop.
        cache_salt: Requests share cached prefixes only with requests of the same salt.
        priority: Lower runs first; ties run in order of arrival.
        grammar: What the output must look like; None leaves it free.
        reasoning_limit: Ends the reasoning in time; None leaves it free.
        timeout_s: Longest time from its arrival to its end, the time for its grammar and in the
            queue included. A request that takes longer ends with an error.
        use_drafts: Whether tokens may be drafted, where the engine does that.
        arrived_s: When it arrived, on the clock of time.monotonic.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    cache_salt: str = ""
    priority: int = 0
    grammar: Grammar | None = None
    reasoning_limit: ReasoningLimit | None = None
    timeout_s: float | None = None
    use_drafts: bool = True
    arrived_s: float = field(default_factory=time.monotonic, compare=False)

    @property
    def is_constrained(self) -> bool:
        """Whether there are tokens that the model may not choose."""
        return self.grammar is not None or self.reasoning_limit is not None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of a generated token, and of the likeliest ones in its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What one step added to a request.

    Attributes:
        text: New text; joined over a request's outputs it is the whole answer.
        token_ids: New tokens. Text can lag behind tokens (an incomplete UTF-8 character, a possible
            stop string).
        logprobs: One entry per new token when asked for, else None.
        finish_reason: None until the request's last output.
        stop_reason: The stop string, the text of the stop sequence or the stop token id that ended
            the request, if one did (None for eos).
        num_prompt_tokens, num_output_tokens: Totals so far.
        num_cached_tokens: Prompt tokens whose keys and values came from the prefix cache.
        wait_s: Time in the queue.
        prompt_logprobs: In the first output, when asked for: an entry per prompt token, None for
            the first one.
        error: What went wrong, when finish_reason is "error" ...
        error_kind: ... what kind of error it is (rtpjax.engine.failures) ...
        error_param: ... the request's field that is at fault ...
        error_code: ... and a short reason for programs.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    wait_s: float = 0.0
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    error: str | None = None
    error_kind: ErrorKind = "engine"
    error_param: str | None = None
    error_code: str | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for metrics and /health. Counters only grow; the rest are current values.

    accepted_by_position: Of drafts, how often their token i was accepted; None where tokens are not
        drafted.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_pages: int = 0
    num_free_pages: int = 0
    page_size: int = 0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    num_preemptions: int = 0
    num_recompiles: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    accepted_by_position: tuple[int, ...] | None = None
    host_s: float = 0.0
    wait_s: float = 0.0
