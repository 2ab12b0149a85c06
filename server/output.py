"""The engine's outputs -> deltas of the answer. A whole answer is the joined stream: one path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Container, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from rtpjax.engine.failures import error_of
from rtpjax.engine.request import GenerationRequest, RequestOutput, TokenLogprob
from rtpjax.errors import DrainingError
from server.engine_protocol import Engine
from server.metrics import Metrics, RequestTimer
from server.parsing.events import Event, Message, fold
from server.reasoning_tokens import ReasoningCounter


@dataclass(frozen=True, slots=True)
class Delta:
    """What one output adds to one choice of the answer.

    Attributes:
        events: What the text turned out to be, once it has been parsed; the text is "" then.
        stop_reason: The stop string or token that ended the choice, if one did.
    """

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    events: tuple[Event, ...] | None = None


@dataclass(slots=True)
class Usage:
    """Token counts of one answer, updated while it is generated.

    Attributes:
        choices_per_prompt: `n`. The choices of a prompt share its tokens, which count once.
        reasoning: Counts each choice's tokens of reasoning; empty for models without it, None for
            APIs that do not tell reasoning apart.
    """

    choices_per_prompt: int = 1
    reasoning: Sequence[ReasoningCounter] | None = None
    last: dict[int, RequestOutput] = field(default_factory=dict)

    def see(self, index: int, output: RequestOutput) -> None:
        """Takes in the next output of a choice."""
        self.last[index] = output
        if self.reasoning:
            self.reasoning[index].see(output.token_ids)

    @property
    def prompt_tokens(self) -> int:
        outputs = self.last.items()
        return sum(o.num_prompt_tokens for i, o in outputs if i % self.choices_per_prompt == 0)

    @property
    def completion_tokens(self) -> int:
        return sum(output.num_output_tokens for output in self.last.values())

    @property
    def cached_tokens(self) -> int:
        # The first choice's: the others find the prompt that the first one has just computed.
        outputs = self.last.items()
        return sum(o.num_cached_tokens for i, o in outputs if i % self.choices_per_prompt == 0)

    @property
    def reasoning_tokens(self) -> int:
        return sum(counter.num_tokens for counter in self.reasoning or ())

    def as_json(self) -> dict[str, object]:
        """OpenAI's `usage` object."""
        counts: dict[str, object] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
        if self.reasoning is not None:
            counts["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        return counts


@dataclass(slots=True)
class Choice:
    """One finished choice of a whole answer.

    Attributes:
        message: What the text turned out to be, when it was parsed; the text is "" then.
        parts: The deltas that it was joined from, for answers in which their order shows.
    """

    index: int
    text: str
    logprobs: list[TokenLogprob] | None
    finish_reason: str | None
    message: Message | None = None
    parts: list[Delta] = field(default_factory=list)


async def deltas(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    usage: Usage,
    metrics: Metrics,
    ended: Container[int] = (),
) -> AsyncGenerator[Delta, None]:
    """Runs all requests at once and yields their deltas as they come; closing it aborts them.

    Args:
        engine: Runs them.
        requests: One per choice.
        usage: Is kept up to date.
        metrics: As well.
        ended: Choices whose reader has all that it wants: their requests are aborted.

    Raises:
        RequestError: The engine refuses a request.
        EngineError: A request ended without a complete answer.
        RequestTimeoutError: The same, since its own time limit was over.
    """
    async with aclosing(_outputs(engine, requests, metrics, ended)) as outputs:
        async for index, output in outputs:
            if index in ended:
                continue
            usage.see(index, output)
            if output.finish_reason == "error":
                raise error_of(output)
            if output.finish_reason == "abort":
                raise DrainingError("the server stopped before the answer was complete")
            if output.text or output.logprobs or output.finish_reason:
                yield Delta(
                    index, output.text, output.logprobs, output.finish_reason, output.stop_reason
                )


def join(parts: Iterable[Delta]) -> list[Choice]:
    """The whole choices that a stream of deltas spells, in order of their index."""
    texts: dict[int, list[str]] = {}
    events: dict[int, list[Event]] = {}
    choices: dict[int, Choice] = {}
    for delta in parts:
        choice = choices.setdefault(delta.index, Choice(delta.index, "", None, None))
        choice.parts.append(delta)
        texts.setdefault(delta.index, []).append(delta.text)
        if delta.events is not None:
            events.setdefault(delta.index, []).extend(delta.events)
        if delta.logprobs is not None:
            choice.logprobs = choice.logprobs or []
            choice.logprobs += delta.logprobs
        choice.finish_reason = delta.finish_reason or choice.finish_reason
    for index, choice in choices.items():
        choice.text = "".join(texts[index])
        if index in events:
            choice.message = fold(events[index])
    return [choices[index] for index in sorted(choices)]


async def _outputs(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    metrics: Metrics,
    ended: Container[int],
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    def timed(index: int) -> AsyncGenerator[RequestOutput, None]:
        return _timed(engine, requests[index], metrics, lambda: index in ended)

    if len(requests) == 1:  # the common case needs no tasks
        async with aclosing(timed(0)) as outputs:
            async for output in outputs:
                yield 0, output
        return
    async with aclosing(_merged(timed, len(requests))) as merged:
        async for pair in merged:
            yield pair


async def _merged(
    outputs_of: Callable[[int], AsyncGenerator[RequestOutput, None]], num_requests: int
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    queue: asyncio.Queue[tuple[int, RequestOutput | None]] = asyncio.Queue()

    async def pump(index: int) -> None:
        try:
            async with aclosing(outputs_of(index)) as outputs:
                async for output in outputs:
                    queue.put_nowait((index, output))
        finally:
            queue.put_nowait((index, None))

    tasks = [asyncio.create_task(pump(index)) for index in range(num_requests)]
    try:
        num_running = len(tasks)
        while num_running:
            index, output = await queue.get()
            if output is not None:
                yield index, output
                continue
            num_running -= 1
            await tasks[index]  # raises what ended this request, if something did
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _timed(
    engine: Engine, request: GenerationRequest, metrics: Metrics, is_ended: Callable[[], bool]
) -> AsyncGenerator[RequestOutput, None]:
    timer = RequestTimer(metrics)
    outputs = engine.generate(request)
    try:
        async for output in outputs:
            timer.see(output)
            yield output
            if output.finish_reason is not None:
                return
            if is_ended():
                timer.finish("stop")
                return
    except (GeneratorExit, asyncio.CancelledError):  # the client left
        timer.finish("abort")
        raise
    finally:
        await outputs.aclose()
