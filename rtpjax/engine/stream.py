"""What an engine says of one request, until its reader takes it.

A reader that is slower than the engine finds several outputs, and gets them as one: the busier a
server is, the more tokens an event has, and the less each of them costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rtpjax.engine.request import RequestOutput, TokenLogprob


class Stream:
    """The outputs of one request. For one event loop, and one reader."""

    __slots__ = ("_last", "_num_output_tokens", "_outputs", "_texts", "_token_ids", "_waiter")

    def __init__(self) -> None:
        self._outputs: list[RequestOutput] = []
        # What came after the last of these, of which nothing but this is new.
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self._last: RequestOutput | None = None
        self._num_output_tokens = 0
        self._waiter: asyncio.Future[None] | None = None

    def add(self, output: RequestOutput) -> None:
        """Takes an output; nothing counts after the one that ends the request."""
        if self._last is not None and self._last.finish_reason is not None:
            return
        self._fold()
        self._outputs.append(output)
        self._last, self._num_output_tokens = output, output.num_output_tokens
        self._wake()

    def add_tokens(self, token_ids: Sequence[int], text: str) -> None:
        """Takes an output of which no more than this is new."""
        self._token_ids += token_ids
        self._texts.append(text)
        if self._waiter is not None:
            self._wake()

    async def take(self) -> list[RequestOutput]:
        """Waits for outputs: one as a rule; an error comes by itself, after what was before it."""
        while not (self._outputs or self._texts):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._fold()
        outputs, self._outputs = self._outputs, []
        *before, last = outputs
        if not before:
            return outputs
        if last.finish_reason in ("error", "abort"):
            return [joined(before), last]
        return [joined(outputs)]

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fold(self) -> None:
        """Makes an output of tokens and texts."""
        if not self._texts:
            return
        last = self._last
        assert last is not None, "a request's first output is a whole one"
        self._num_output_tokens += len(self._token_ids)
        self._outputs.append(
            RequestOutput(
                last.request_id,
                "".join(self._texts),
                tuple(self._token_ids),
                num_prompt_tokens=last.num_prompt_tokens,
                num_output_tokens=self._num_output_tokens,
                num_cached_tokens=last.num_cached_tokens,
                wait_s=last.wait_s,
            )
        )
        self._token_ids, self._texts = [], []


def has_only_tokens(output: RequestOutput) -> bool:
    """Whether tokens and text are all that is new, and others came before."""
    return (
        output.finish_reason is None
        and output.logprobs is None
        and output.prompt_logprobs is None
        and output.num_output_tokens > len(output.token_ids)
    )


def joined(outputs: Sequence[RequestOutput]) -> RequestOutput:
    """One output for several that follow each other."""
    first, last = outputs[0], outputs[-1]
    if first is last:
        return first
    logprobs: list[TokenLogprob] = []
    for output in outputs:
        logprobs += output.logprobs or ()
    return RequestOutput(
        last.request_id,
        "".join([output.text for output in outputs]),
        tuple([token_id for output in outputs for token_id in output.token_ids]),
        logprobs=tuple(logprobs) if any(o.logprobs is not None for o in outputs) else None,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        num_prompt_tokens=last.num_prompt_tokens,
        num_output_tokens=last.num_output_tokens,
        num_cached_tokens=last.num_cached_tokens,
        wait_s=last.wait_s,
        prompt_logprobs=first.prompt_logprobs,
    )
