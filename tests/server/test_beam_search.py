"""Beams: as transformers finds them, and over HTTP."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from rtpjax.engine.async_engine import AsyncLLMEngine
from rtpjax.engine.request import GenerationRequest, RequestOutput, SamplingParams, TokenLogprob
from rtpjax.engine.runner import Runner
from rtpjax.engine.thread import ThreadLink
from server.beam_search import BeamSearch
from server.protocol.sampling import SamplingFields
from tests.golden import cases
from tests.rtpjax.engine import tiny
from tests.server.live_server import LiveServer
from tests.server.scripted_engine import ScriptedEngine, make_tokenizer

NUM_WORDS = 12
END = 3


def distribution(context: tuple[int, ...]) -> list[float]:
    """Log-probabilities of the next token, from the last two of a context."""
    draw = random.Random(repr(context[-2:]))
    weights = [draw.random() ** 2 + 0.01 for _ in range(NUM_WORDS)]
    return [math.log(weight / sum(weights)) for weight in weights]


class MarkovEngine(ScriptedEngine):
    """Gives a token's probabilities, as far as a beam search asks for them."""

    end_token_ids = frozenset({END})
    max_model_len = 40
    num_steps = 0

    async def _generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]:
        await asyncio.sleep(0)
        assert (request.sampling.max_tokens, request.sampling.ignore_eos) == (1, True)
        self.num_steps += 1
        logprobs = distribution(request.prompt_token_ids)
        ranked = sorted(range(NUM_WORDS), key=lambda i: -logprobs[i])
        top = tuple((i, logprobs[i]) for i in ranked[: request.sampling.logprobs])
        entry = TokenLogprob(top[0][0], top[0][1], top)
        prompt_len = len(request.prompt_token_ids)
        yield RequestOutput(
            request.request_id, "", (top[0][0],), (entry,), "length", None, prompt_len, 1
        )


def search(num_beams: int, n: int, **sampling: Any) -> list[RequestOutput]:
    engine = MarkovEngine()
    body = SamplingFields(num_beams=num_beams, n=n)
    requests = [GenerationRequest(str(i), (5, 6), SamplingParams(**sampling)) for i in range(n)]
    beams = BeamSearch(engine, requests, body)

    async def one(request: GenerationRequest) -> RequestOutput:
        async with aclosing(beams.generate(request)) as outputs:
            [output] = [output async for output in outputs]
        return output

    async def run() -> list[RequestOutput]:
        return list(await asyncio.gather(*map(one, requests)))

    return asyncio.run(run())


def total(token_ids: tuple[int, ...]) -> float:
    context = (5, 6)
    value = 0.0
    for token_id in token_ids:
        value += distribution(context)[token_id]
        context = (*context, token_id)
    return value


def plain_search(num_beams: int, max_tokens: int, ends: frozenset[int]) -> list[tuple[int, ...]]:
    """The same search written down once more, over all tokens, in one loop."""
    live, done = [((), 0.0)], []
    for length in range(1, max_tokens + 1):
        grown = [((*t, i), total((*t, i))) for t, _ in live for i in range(NUM_WORDS)]
        grown.sort(key=lambda pair: -pair[1])
        best = grown[: 2 * num_beams]
        is_end = [pair[0][-1] in ends or length == max_tokens for pair in best]
        done += [p for p, e in zip(best[:num_beams], is_end, strict=False) if e]
        done = sorted(done, key=lambda pair: -pair[1] / len(pair[0]))[:num_beams]
        live = [p for p, e in zip(best, is_end, strict=True) if not e][:num_beams]
        worst = done[-1][1] / len(done[-1][0]) if len(done) == num_beams else -math.inf
        if not live or worst >= live[0][1] / length:
            break
    return [token_ids for token_ids, _ in done]


@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("max_tokens", [1, 2, 7, 20])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_the_beams_are_those_of_a_plain_search(
    num_beams: int, max_tokens: int, ignore_eos: bool
) -> None:
    outputs = search(num_beams, num_beams, max_tokens=max_tokens, ignore_eos=ignore_eos, logprobs=1)
    ends = frozenset() if ignore_eos else frozenset({END})
    assert [o.token_ids for o in outputs] == plain_search(num_beams, max_tokens, ends)
    for output in outputs:
        has_end = output.token_ids[-1] == END and not ignore_eos
        assert output.finish_reason == ("stop" if has_end else "length")
        assert output.logprobs is not None
        assert sum(e.logprob for e in output.logprobs) == pytest.approx(total(output.token_ids))
        assert all(len(entry.top) == 1 for entry in output.logprobs)
        words = output.token_ids[:-1] if has_end else output.token_ids
        assert output.text == make_tokenizer().decode(words)


def test_min_tokens_and_stop_strings() -> None:
    [longer] = search(3, 1, max_tokens=12, min_tokens=6)
    assert END not in longer.token_ids[:6]
    word = make_tokenizer().decode(longer.token_ids[2:4])
    [stopped] = search(3, 1, max_tokens=12, min_tokens=3, stop=(word,))
    assert word not in stopped.text
    if stopped.stop_reason is not None:
        assert (stopped.stop_reason, stopped.finish_reason) == (word, "stop")


@pytest.fixture(scope="module")
def runner() -> Runner:
    tiny.runner().reset()
    return tiny.runner()


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("max_tokens", [6, 20])
def test_the_beams_are_those_of_transformers(runner: Runner, max_tokens: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    num_beams, prompts = 4, [tiny.prompt(n, n) for n in (3, 17, 30)]
    model = LlamaForCausalLM(LlamaConfig(**tiny.HF_CONFIG)).eval()
    state = {k: torch.tensor(cases.weight(k, v.shape)) for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    body = SamplingFields(num_beams=num_beams, n=num_beams)

    async def find(prompt: tuple[int, ...]) -> list[tuple[int, ...]]:
        params = SamplingParams(max_tokens=max_tokens)
        requests = [GenerationRequest(str(i), prompt, params) for i in range(num_beams)]
        beams = BeamSearch(engine, requests, body)

        async def one(request: GenerationRequest) -> tuple[int, ...]:
            async with aclosing(beams.generate(request)) as outputs:
                [output] = [output async for output in outputs]
            return output.token_ids

        return list(await asyncio.gather(*map(one, requests)))

    async def run() -> list[list[tuple[int, ...]]]:
        await engine.start()
        found = [await find(prompt) for prompt in prompts]
        await engine.stop()
        return found

    engine = AsyncLLMEngine(
        ThreadLink(lambda _: tiny.make_engine(runner)), tiny.tokenizer(), "tiny"
    )
    for prompt, found in zip(prompts, asyncio.run(run()), strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_new_tokens=max_tokens,
            suppress_tokens=list(range(tiny.NUM_TOKENS, 320)),
            renormalize_logits=True,
        )[:, len(prompt) :].tolist()
        ended = [row[: row.index(tiny.END) + 1] if tiny.END in row else row for row in expected]
        assert [list(tokens) for tokens in found] == ended


@pytest.mark.parametrize("stream", [False, True])
def test_over_http(stream: bool) -> None:
    engine = MarkovEngine()
    with LiveServer(engine) as server:
        body = {"prompt": [[5, 6], [7, 8]], "num_beams": 3, "n": 2, "max_tokens": 5}
        answer = server.client.post("/v1/completions", json=body | {"return_token_ids": True})
        choices = answer.json()["choices"]
        assert [tuple(c["token_ids"]) for c in choices[:2]] == plain_search(3, 5, frozenset({END}))[
            :2
        ]
        assert answer.json()["usage"]["prompt_tokens"] == 4
        assert server.chat(num_beams=2, n=2, stream=stream, max_tokens=3).status_code == 200
        body = {"prompt": "ab", "num_beams": 2, "max_tokens": 3, "stream": stream}
        assert server.client.post("/v1/completions", json=body).status_code == 200
        raw = {"prompt": "ab", "num_beams": 2, "max_new_tokens": 3}
        assert server.client.post("/", json=raw).json()["response"]


def test_leaving_ends_the_search() -> None:
    engine = MarkovEngine()

    async def scenario() -> int:
        body = SamplingFields(num_beams=2, n=1)
        request = GenerationRequest("r", (5, 6), SamplingParams(max_tokens=38, ignore_eos=True))
        beams = BeamSearch(engine, [request], body)

        async def listen() -> None:
            async with aclosing(beams.generate(request)) as outputs:
                async for _ in outputs:
                    pass

        task = asyncio.create_task(listen())
        while engine.num_steps < 3:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.01)
        num_steps = engine.num_steps
        await asyncio.sleep(0.05)
        return engine.num_steps - num_steps

    assert asyncio.run(scenario()) == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"num_beams": 11}, "num_beams"),
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2, "n": 3}, "n"),
        ({"num_beams": 2, "logit_bias": {"1": 1}}, "logit_bias"),
        ({"num_beams": 2, "repetition_penalty": 1.1}, "repetition_penalty"),
        ({"num_beams": 2, "allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"use_beam_search": True}, "use_beam_search"),
    ],
)
def test_refuses(server: LiveServer, fields: dict[str, Any], param: str) -> None:
    response = server.chat(**fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
