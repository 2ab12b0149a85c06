"""Follows an answer's requests: token ids and times, for the fields that tell about them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from rtpjax.engine.request import GenerationRequest, RequestOutput, TokenLogprob
from server.engine_protocol import Engine


@dataclass(slots=True)
class Record:
    """What one request's outputs told.

    Attributes:
        start_s, first_s, last_s: When it began, gave its first token, and its latest one.
        token_ids: Its output so far.
        num_outputs: How many outputs carried tokens (the engine's steps for it).
        last: Its latest output.
        prompt_logprobs: As in RequestOutput.
    """

    start_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    last_s: float | None = None
    token_ids: list[int] = field(default_factory=list)
    num_outputs: int = 0
    last: RequestOutput | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    _num_taken: int = 0

    def see(self, output: RequestOutput) -> None:
        """Adds one output."""
        self.last = output
        self.last_s = time.monotonic()
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        if output.token_ids:
            self.first_s = self.first_s or self.last_s
            self.token_ids += output.token_ids
            self.num_outputs += 1

    def take(self) -> list[int]:
        """The tokens since the last call."""
        start, self._num_taken = self._num_taken, len(self.token_ids)
        return self.token_ids[start:]


class Recorder:
    """An engine as `server.output.deltas` uses it, that keeps records.

    Attributes:
        requests: The answer's requests, by index of their choice.
        records: Of each of them.
    """

    def __init__(self, engine: Engine, requests: Sequence[GenerationRequest]):
        self._engine = engine
        self.requests = requests
        self.records = [Record() for _ in requests]
        self._by_id = {r.request_id: self.records[i] for i, r in enumerate(requests)}

    def generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]:
        """As the engine's."""
        return self._follow(self._engine.generate(request), self._by_id[request.request_id])

    async def _follow(
        self, outputs: AsyncGenerator[RequestOutput, None], record: Record
    ) -> AsyncGenerator[RequestOutput, None]:
        async with aclosing(outputs):
            async for output in outputs:
                record.see(output)
                yield output
