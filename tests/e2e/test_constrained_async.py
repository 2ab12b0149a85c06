"""Grammars through the engine that a server sees."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from rtpjax.engine import engine as engine_module
from rtpjax.engine.async_engine import AsyncLLMEngine
from rtpjax.engine.failures import error_of
from rtpjax.engine.request import GenerationRequest, Grammar, SamplingParams
from rtpjax.engine.thread import ThreadLink
from rtpjax.errors import RequestError
from tests.e2e import byte_model

JSON = Grammar("json_schema", json.dumps({"type": "object", "maxProperties": 1}))
PROMPT = byte_model.encode("a prompt")


def request(name: str, grammar: Grammar | None, seed: int = 0) -> GenerationRequest:
    sampling = SamplingParams(temperature=1.5, seed=seed, max_tokens=200)
    return GenerationRequest(name, PROMPT, sampling, grammar=grammar)


async def text_of(engine: AsyncLLMEngine, asked: GenerationRequest) -> str:
    text = ""
    async for output in engine.generate(asked):
        text += output.text
        if output.finish_reason == "error":
            raise error_of(output)
    return text


def serve(main) -> None:
    """Runs main(engine, its inner engine) against a started engine."""

    async def served() -> None:
        inner = byte_model.make_engine()
        engine = AsyncLLMEngine(ThreadLink(lambda _: inner), byte_model.tokenizer(), "bytes")
        await engine.start()
        try:
            async with asyncio.timeout(60):
                await main(engine, inner)
        finally:
            await engine.stop()

    asyncio.run(served())


def test_constrained_and_free_requests_at_once():
    async def main(engine, inner):
        grammars = [JSON, None] * 6
        texts = await asyncio.gather(
            *(text_of(engine, request(f"{i}", g, i)) for i, g in enumerate(grammars))
        )
        complete = [json.loads(text) for text in texts[::2] if text.endswith("}")]
        assert len(complete) > 2
        assert not inner.has_work

    serve(main)


def test_a_wrong_grammar_is_refused_before_anything_is_queued():
    async def main(engine, inner):
        with pytest.raises(RequestError, match="unknown name"):
            await text_of(engine, request("wrong", Grammar("lark", "start: x")))
        assert inner.stats().num_prompt_tokens == 0
        assert await text_of(engine, request("right", Grammar("regex", "[ab]c"))) in ("ac", "bc")

    serve(main)


def test_a_slow_grammar_is_given_up_while_the_loop_and_others_go_on(monkeypatch):
    monkeypatch.setattr(engine_module, "TIME_LIMIT_S", 0.3)
    gate = threading.Event()

    async def main(engine, inner):
        await text_of(engine, request("warm", JSON))
        compile_ = inner.grammars._compile

        def slow(*given):
            assert gate.wait(30)
            return compile_(*given)

        inner.grammars._compile = slow
        started = time.monotonic()
        waiting = asyncio.create_task(text_of(engine, request("slow", Grammar("regex", "a"))))
        await text_of(engine, request("other", None))
        with pytest.raises(RequestError, match="took over"):
            await waiting
        assert time.monotonic() - started < 20
        gate.set()

    serve(main)


def test_a_client_that_leaves_while_its_grammar_is_compiled():
    gate = threading.Event()

    async def main(engine, inner):
        compile_ = inner.grammars._compile
        inner.grammars._compile = lambda *given: gate.wait(30) and compile_(*given)
        task = asyncio.create_task(text_of(engine, request("left", JSON)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        # Whoever asks for the same grammar gets it.
        assert (await text_of(engine, request("next", JSON))).lstrip().startswith("{")

    serve(main)
