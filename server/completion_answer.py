"""Answers of the legacy completions API: `text_completion`, streamed and whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rtpjax.engine.request import GenerationRequest, TokenLogprob
from server.answer import NULL, Envelope, dumps
from server.output import Choice, Delta, Usage
from server.recorder import Recorder
from server.text_offsets import TextOffsets, prompt_offsets
from server.token_text import TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class CompletionAnswer:
    """Implements AnswerFormat.

    Args:
        requests: The engine's, by index of their choice.
        echoes: Per choice the text that stands before the generated one (the prompt, with `echo`).
        recorder: Knows the echoed tokens' log-probabilities, if they are asked for.
        num_top: How many likeliest tokens the echo's log-probabilities name.
    """

    def __init__(
        self,
        model: str,
        tokenizer: PreTrainedTokenizerFast,
        tokens: TokenText,
        requests: Sequence[GenerationRequest],
        *,
        with_usage: bool,
        fingerprint: str = "",
        usage_so_far: Usage | None = None,
        echoes: Sequence[str] = (),
        recorder: Recorder | None = None,
        num_top: int = 0,
    ):
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._requests = requests
        self._echoes = echoes
        self._recorder = recorder
        self._num_top = num_top
        self._offsets: dict[int, TextOffsets] = {}
        self._chunk = Envelope(
            "cmpl",
            "text_completion",
            model,
            with_usage=with_usage,
            fingerprint=fingerprint,
            usage_so_far=usage_so_far,
        )

    @property
    def id(self) -> str:
        return self._chunk.fields["id"]

    def first(self, index: int) -> bytes | None:
        if not self._echoes:
            return None
        logprobs = NULL
        if self._recorder is not None:
            logprobs = dumps(self._echoed(index))
        return self._event(index, self._echoes[index], logprobs, None)

    def delta(self, delta: Delta) -> bytes:
        logprobs = NULL
        if delta.logprobs is not None:
            logprobs = dumps(self._logprobs(delta.index, delta.logprobs))
        return self._event(delta.index, delta.text, logprobs, delta.finish_reason)

    def usage(self, usage: Usage) -> bytes:
        return self._chunk.usage_event(usage)

    def whole(self, choices: list[Choice], usage: Usage) -> dict[str, Any]:
        return self._chunk.fields | {
            "choices": [self._choice(choice) for choice in choices],
            "usage": usage.as_json(),
        }

    def _choice(self, choice: Choice) -> dict[str, Any]:
        logprobs = None
        if choice.logprobs is not None:
            logprobs = self._logprobs(choice.index, choice.logprobs)
            if self._recorder is not None:
                echoed = self._echoed(choice.index)
                logprobs = {name: echoed[name] + values for name, values in logprobs.items()}
        echo = self._echoes[choice.index] if self._echoes else ""
        return {
            "index": choice.index,
            "text": echo + choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }

    def _event(self, index: int, text: str, logprobs: bytes, finish_reason: str | None) -> bytes:
        return self._chunk.event(
            b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}'
            % (index, dumps(text), logprobs, dumps(finish_reason))
        )

    def _echoed(self, index: int) -> dict[str, list[Any]]:
        """The prompt's tokens; the first one has no log-probability, only an id."""
        assert self._recorder is not None
        token_ids = self._requests[index].prompt_token_ids
        offsets = prompt_offsets(self._tokenizer, self._tokens, token_ids, self._echoes[index])
        entries = self._recorder.records[index].prompt_logprobs or ()
        scored = [replace(e, top=e.top[: self._num_top]) for e in entries if e is not None]
        return self._columns([token_ids[0], *scored], offsets)

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        if index not in self._offsets:
            request = self._requests[index]
            self._offsets[index] = TextOffsets(
                self._tokenizer,
                self._tokens,
                start=len(self._echoes[index]) if self._echoes else 0,
                prompt_token_ids=request.prompt_token_ids,
                skip_special_tokens=request.sampling.skip_special_tokens,
            )
        offsets = self._offsets[index]
        return self._columns(entries, [offsets.of(entry.token_id) for entry in entries])

    def _columns(
        self, entries: Sequence[TokenLogprob | int], offsets: list[int]
    ) -> dict[str, list[Any]]:
        """The API's lists, of tokens and those that have an id only."""
        names, values, top = [], [], []
        for entry in entries:
            is_scored = isinstance(entry, TokenLogprob)
            names.append(self._tokens.name_of(entry.token_id if is_scored else entry))
            values.append(max(entry.logprob, -9999.0) if is_scored else None)
            top.append(self._top(entry) if is_scored else None)
        return {
            "tokens": names,
            "token_logprobs": values,
            "top_logprobs": top,
            "text_offset": offsets[: len(names)],
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """By name; where two tokens have the same, the less likely one is named by its id."""
        found: dict[str, float] = {}
        for token_id, logprob in entry.top:
            name = self._tokens.name_of(token_id)
            name = f"token_id:{token_id}" if name in found else name
            found[name] = max(logprob, -9999.0)
        return found
