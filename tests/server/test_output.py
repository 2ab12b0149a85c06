"""Interleaving, counting, and what happens when somebody stops listening."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from rtpjax.engine.request import GenerationRequest, SamplingParams
from rtpjax.errors import EngineError
from server.connection import Limits
from server.metrics import Metrics
from server.output import Delta, Usage, deltas, join
from tests.server.scripted_engine import CACHED_TOKENS, ScriptedEngine


def requests(n: int, max_tokens: int = 6) -> list[GenerationRequest]:
    return [
        GenerationRequest(f"r{i}", (1, 2, 3), SamplingParams(max_tokens=max_tokens, seed=i))
        for i in range(n)
    ]


def make_metrics(engine: ScriptedEngine) -> Metrics:
    return Metrics(
        engine.stats, Limits(max_connections=9, max_body_bytes=9, write_timeout_s=9.0), "m"
    )


async def collect(engine: ScriptedEngine, n: int, usage: Usage) -> list[Delta]:
    metrics = make_metrics(engine)
    async with aclosing(deltas(engine, requests(n), usage, metrics)) as stream:
        return [delta async for delta in stream]


@pytest.mark.parametrize("n", [1, 4])
def test_choices_are_the_same_alone_and_together(engine: ScriptedEngine, n: int) -> None:
    choices = join(asyncio.run(collect(engine, n, Usage())))
    assert [choice.index for choice in choices] == list(range(n))
    for index, request in enumerate(requests(n)):

        async def alone(request: GenerationRequest = request) -> str:
            return "".join([output.text async for output in engine.generate(request)])

        assert choices[index].text == asyncio.run(alone())


def test_usage_counts_a_prompt_once(engine: ScriptedEngine) -> None:
    usage = Usage(choices_per_prompt=2)  # two prompts with two choices each
    asyncio.run(collect(engine, 4, usage))
    assert usage.prompt_tokens == 6
    assert usage.completion_tokens == 24
    assert usage.cached_tokens == 2 * CACHED_TOKENS


@pytest.mark.parametrize("n", [1, 4])
def test_closing_early_aborts_all(engine: ScriptedEngine, n: int) -> None:
    async def scenario() -> None:
        stream = deltas(engine, requests(n), Usage(), make_metrics(engine))
        await anext(stream)
        await stream.aclose()
        assert not engine.running

    asyncio.run(scenario())
    assert len(engine.aborted) == n


def test_one_failing_choice_ends_the_others(engine: ScriptedEngine) -> None:
    engine.error_at = 2
    with pytest.raises(EngineError, match="caught fire"):
        asyncio.run(collect(engine, 3, Usage()))
    assert not engine.running
