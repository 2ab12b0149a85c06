"""An engine without a model: its tokens follow from prompt, seed and position alone."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rtpjax.engine.request import EngineStats, GenerationRequest, RequestOutput, TokenLogprob
from rtpjax.errors import DrainingError

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.content == 'raise' %}{{ raise_exception('no such words here') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CACHED_TOKENS = 4


def make_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: one token per UTF-8 byte, and three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = template
    return tokenizer


class ScriptedEngine:
    """Follows server.engine_protocol.Engine. Its attributes make it misbehave.

    Attributes:
        error_at: Position of the token at which every request fails, or None.
        error: What the engine says of it.
        raise_at: Position at which something is raised that nobody foresaw, and what.
        delay_s: Time per token.
        stop_with: What every request is stopped by at its last token.
        running, aborted: Ids of requests.
    """

    model_name = "org/scripted"
    created = 1_700_000_000
    max_model_len = 512
    end_token_ids = frozenset[int]()

    def __init__(self, *, is_ready: bool = True, template: str | None = TEMPLATE):
        self.tokenizer = make_tokenizer(template)
        self.is_ready = is_ready
        self.is_draining = False
        self.failure: str | None = None
        self.delay_s = 0.0
        self.error_at: int | None = None
        self.error = "the device caught fire"
        self.raise_at: tuple[int, Exception] | None = None
        self.stop_with: str | int | None = None
        self.refuse_with: Exception | None = None
        self.seen: list[GenerationRequest] = []
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.start_gate = asyncio.Event()
        self.start_gate.set()

    def generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]:
        return self._generate(request)

    async def _generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]:
        if self.refuse_with is not None:
            raise self.refuse_with
        if self.is_draining:
            raise DrainingError("the engine is draining")
        self.seen.append(request)
        self.running.add(request.request_id)
        is_finished = False
        try:
            num_tokens = min(
                request.sampling.max_tokens or 24,
                self.max_model_len - len(request.prompt_token_ids),
            )
            for position in range(num_tokens):
                await asyncio.sleep(self.delay_s)
                if self.raise_at is not None and position == self.raise_at[0]:
                    raise self.raise_at[1]
                is_finished = position == num_tokens - 1 or position == self.error_at
                yield self._output(request, position, is_last=position == num_tokens - 1)
                if is_finished:
                    return
        finally:
            self.running.discard(request.request_id)
            if not is_finished:
                self.aborted.append(request.request_id)

    def _output(self, request: GenerationRequest, position: int, *, is_last: bool) -> RequestOutput:
        character = script(request, position)
        token_id = self.tokenizer.backend_tokenizer.encode(character).ids[0]
        logprobs = None
        if request.sampling.logprobs is not None:
            others = [(token_id, -0.5)] + [(i, -1.0 - i) for i in range(40) if i != token_id]
            top = tuple(others[: request.sampling.logprobs])
            logprobs = (TokenLogprob(token_id, -0.5, top),)
        prompt_logprobs = None
        if request.sampling.prompt_logprobs is not None and position == 0:
            prompt_logprobs = (None, *map(self._scored(request), request.prompt_token_ids[1:]))
        fails = position == self.error_at
        is_stopped = request.sampling.max_tokens is None or self.stop_with is not None
        end = "stop" if is_stopped else "length"
        return RequestOutput(
            request_id=request.request_id,
            text="" if fails else character,
            token_ids=(token_id,),
            logprobs=logprobs,
            finish_reason="error" if fails else end if is_last else None,
            num_prompt_tokens=len(request.prompt_token_ids),
            num_output_tokens=position + 1,
            num_cached_tokens=CACHED_TOKENS,
            stop_reason=self.stop_with if is_last else None,
            prompt_logprobs=prompt_logprobs,
            error=self.error if fails else None,
        )

    def _scored(self, request: GenerationRequest) -> Callable[[int], TokenLogprob]:
        top = tuple((i, -1.0 - i) for i in range(request.sampling.prompt_logprobs or 0))
        return lambda token_id: TokenLogprob(token_id, -0.25, top)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self.running),
            num_pages=10,
            num_free_pages=4,
            page_size=16,
            prefix_hit_tokens=7,
        )

    async def start(self) -> None:
        await self.start_gate.wait()
        self.is_ready = True

    async def drain(self, timeout_s: float) -> None:
        self.is_draining = True
        for _ in range(int(timeout_s / 0.01)):
            if not self.running:
                return
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self.is_ready = False


def script(request: GenerationRequest, position: int) -> str:
    """The character at one position: the same for the same prompt and seed."""
    key = (request.prompt_token_ids, request.sampling.seed, position)
    return 'abcdefghijklmnopqrstuvwxyz .,\n"\\'[hashlib.sha256(repr(key).encode()).digest()[0] % 32]
