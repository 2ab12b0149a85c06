"""Beam search on top of an engine that knows nothing of it.

Each step asks the engine for one more token of every live beam and for the likeliest tokens in its
place. The beams share what they have in common through the prefix cache, so a step computes the
last few tokens of each beam only. As in transformers: a beam that ends counts if it is among the
best `num_beams` of its step; beams are compared by the mean log-probability of their tokens.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from rtpjax.engine.detokenizer import Detokenizer
from rtpjax.engine.request import GenerationRequest, RequestOutput, SamplingParams, TokenLogprob
from rtpjax.errors import EngineError
from server.context import ModelContext
from server.engine_protocol import Engine
from server.protocol.sampling import SamplingFields
from server.recorder import Recorder


@dataclass(frozen=True, slots=True)
class Beam:
    """Tokens after a prompt, with the sum of their log-probabilities."""

    entries: tuple[TokenLogprob, ...] = ()
    total: float = 0.0
    has_ended: bool = False
    stop_reason: str | int | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(entry.token_id for entry in self.entries)

    @property
    def score(self) -> float:
        """What finished beams are compared by."""
        return self.total / max(1, len(self.entries))


class BeamSearch:
    """Generates as an engine does. The choices of a prompt are the best beams of one search."""

    def __init__(self, engine: Engine, requests: Sequence[GenerationRequest], body: SamplingFields):
        self._engine = engine
        self._num_beams = body.num_beams
        self._places = {request.request_id: divmod(i, body.n) for i, request in enumerate(requests)}
        self._searches: dict[int, asyncio.Task[list[RequestOutput]]] = {}
        self._num_waiting: dict[int, int] = {}

    def generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]:
        """The whole answer of one choice, in one output."""
        return self._choice(request)

    async def _choice(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]:
        prompt, choice = self._places[request.request_id]
        if prompt not in self._searches:
            self._searches[prompt] = asyncio.create_task(self._search(request))
        self._num_waiting[prompt] = self._num_waiting.get(prompt, 0) + 1
        try:
            outputs = await asyncio.shield(self._searches[prompt])
            yield dataclasses.replace(outputs[choice], request_id=request.request_id)
        finally:
            self._num_waiting[prompt] -= 1
            if not self._num_waiting[prompt]:
                self._searches[prompt].cancel()

    async def _search(self, request: GenerationRequest) -> list[RequestOutput]:
        """The best beams, as outputs."""
        room = self._engine.max_model_len - len(request.prompt_token_ids)
        max_tokens = min(request.sampling.max_tokens or room, room)
        live, ended, first = [Beam()], list[Beam](), None
        for length in range(1, max_tokens + 1):
            steps = await self._step(request, live)
            first = first or steps[0]
            live, found = self._extend(request, live, steps, is_last=length == max_tokens)
            ended = sorted(ended + found, key=lambda beam: -beam.score)[: self._num_beams]
            is_full = len(ended) == self._num_beams
            if not live or (is_full and ended[-1].score >= live[0].score):
                break
        assert first is not None
        return [self._output(request, beam, first) for beam in ended]

    async def _step(self, request: GenerationRequest, beams: list[Beam]) -> list[RequestOutput]:
        tasks = [asyncio.create_task(self._next(request, beam)) for beam in beams]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _next(self, request: GenerationRequest, beam: Beam) -> RequestOutput:
        """The engine's output for one token after a beam, which names the likeliest ones."""
        step = dataclasses.replace(
            request,
            request_id=secrets.token_hex(12),
            prompt_token_ids=request.prompt_token_ids + beam.token_ids,
            sampling=SamplingParams(
                max_tokens=1, temperature=0.0, ignore_eos=True, logprobs=2 * self._num_beams
            ),
        )
        async with aclosing(self._engine.generate(step)) as outputs:
            async for output in outputs:
                if output.finish_reason in ("error", "abort"):
                    raise EngineError(output.error or "the engine ended a step of the beam search")
                return output
        raise EngineError("the engine gave no token for a step of the beam search")

    def _extend(
        self,
        request: GenerationRequest,
        beams: list[Beam],
        steps: list[RequestOutput],
        *,
        is_last: bool,
    ) -> tuple[list[Beam], list[Beam]]:
        """The live beams after a step, best first, and those that ended in it."""
        candidates = [
            Beam((*beam.entries, TokenLogprob(token_id, logprob, entry.top)), beam.total + logprob)
            for beam, step in zip(beams, steps, strict=True)
            for entry in step.logprobs or ()
            for token_id, logprob in entry.top
        ]
        candidates.sort(key=lambda beam: -beam.total)
        live, ended = list[Beam](), list[Beam]()
        for rank, candidate in enumerate(candidates[: 2 * self._num_beams]):
            beam = self._ended(request, candidate)
            if beam is None:
                continue
            if beam.has_ended or is_last:
                if rank < self._num_beams:
                    ended.append(beam)
            elif len(live) < self._num_beams:
                live.append(beam)
        return live, ended

    def _ended(self, request: GenerationRequest, beam: Beam) -> Beam | None:
        """The beam, marked if its last token ends it; None if that may not end it yet."""
        sampling, token_id = request.sampling, beam.entries[-1].token_id
        own = frozenset() if sampling.ignore_eos else self._engine.end_token_ids
        if token_id in own or token_id in sampling.stop_token_ids:
            if len(beam.entries) <= sampling.min_tokens:
                return None
            reason = token_id if token_id in sampling.stop_token_ids else None
            return dataclasses.replace(beam, has_ended=True, stop_reason=reason)
        if sampling.stop:
            _, reason = self._text(request, beam)
            if reason is not None:
                return dataclasses.replace(beam, has_ended=True, stop_reason=reason)
        return beam

    def _text(self, request: GenerationRequest, beam: Beam) -> tuple[str, str | None]:
        """A beam's text, and the stop string in it."""
        sampling = request.sampling
        detokenizer = Detokenizer(
            self._engine.tokenizer,
            prompt_token_ids=request.prompt_token_ids,
            skip_special_tokens=sampling.skip_special_tokens,
            stop=sampling.stop,
            min_tokens=sampling.min_tokens,
            include_stop_str_in_output=sampling.include_stop_str_in_output,
        )
        is_end = beam.has_ended and not isinstance(beam.stop_reason, str)
        text = detokenizer.push(beam.token_ids[:-1] if is_end else beam.token_ids)
        return text + detokenizer.finish(), detokenizer.stop_reason

    def _output(
        self, request: GenerationRequest, beam: Beam, first: RequestOutput
    ) -> RequestOutput:
        count = request.sampling.logprobs
        logprobs = None
        if count is not None:
            logprobs = tuple(
                dataclasses.replace(entry, top=entry.top[:count]) for entry in beam.entries
            )
        return dataclasses.replace(
            first,
            text=self._text(request, beam)[0],
            token_ids=beam.token_ids,
            logprobs=logprobs,
            finish_reason="stop" if beam.has_ended else "length",
            stop_reason=beam.stop_reason,
            num_output_tokens=len(beam.entries),
        )


def recorder_of(
    context: ModelContext, body: SamplingFields, requests: Sequence[GenerationRequest]
) -> Recorder:
    """Follows the requests of an answer, whether the engine samples them or beams are searched."""
    if body.num_beams == 1:
        return Recorder(context.engine, requests)
    # A recorder only generates, which is what a search does as an engine does.
    return Recorder(cast(Engine, BeamSearch(context.engine, requests, body)), requests)
