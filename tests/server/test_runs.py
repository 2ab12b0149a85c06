"""Outputs of several tokens at once, as engines bring them whose drafts are accepted."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from rtpjax.engine.request import EngineStats, GenerationRequest, RequestOutput
from tests.server.live_server import LiveServer
from tests.server.routes.test_chat import events
from tests.server.scripted_engine import ScriptedEngine


class InRuns(ScriptedEngine):
    """Brings the same tokens, three at a time."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]:
        return self._in_runs(super().generate(request))

    async def _in_runs(
        self, outputs: AsyncGenerator[RequestOutput, None]
    ) -> AsyncGenerator[RequestOutput, None]:
        held: list[RequestOutput] = []
        async for output in outputs:
            held.append(output)
            if len(held) == 3 or output.finish_reason is not None:
                yield joined(held)
                held = []

    def stats(self) -> EngineStats:
        return EngineStats(num_drafts=4, num_draft_tokens=8, accepted_by_position=(3, 2))


def joined(outputs: list[RequestOutput]) -> RequestOutput:
    chain = itertools.chain.from_iterable
    return dataclasses.replace(
        outputs[-1],
        text="".join(output.text for output in outputs),
        token_ids=tuple(chain(output.token_ids for output in outputs)),
        logprobs=tuple(chain(output.logprobs or () for output in outputs)) or None,
        prompt_logprobs=outputs[0].prompt_logprobs,
    )


@pytest.fixture(scope="module")
def in_runs() -> Iterator[LiveServer]:
    with LiveServer(InRuns()) as running:
        yield running


COMMON = {"max_tokens": 11, "seed": 4, "return_token_ids": True}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 2}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "ab", "logprobs": 2, "echo": True},
}


@pytest.mark.parametrize("url", BODIES)
def test_whole_answers_are_the_same(server: LiveServer, in_runs: LiveServer, url: str) -> None:
    def answer(of: LiveServer) -> list[dict[str, Any]]:
        return of.client.post(url, json=BODIES[url] | COMMON).json()["choices"]

    assert answer(in_runs) == answer(server)


def test_streams_bring_the_same_in_fewer_events(server: LiveServer, in_runs: LiveServer) -> None:
    def told(of: LiveServer) -> tuple[int, str, list[Any], list[int]]:
        chunks = events(
            of.client.post("/v1/chat/completions", json=CHAT | COMMON | {"stream": True})
        )
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        logprobs = [e for c in choices for e in (c.get("logprobs") or {}).get("content", [])]
        return len(chunks), text, logprobs, [t for c in choices for t in c.get("token_ids", [])]

    count, *one = told(server)
    fewer, *other = told(in_runs)
    assert other == one and len(one[1]) == len(one[2]) == 11
    assert fewer < count


def test_iter_count_is_of_steps(in_runs: LiveServer) -> None:
    info = in_runs.chat(max_tokens=11, aux_info=True).json()["aux_info"]
    assert (info["output_len"], info["iter_count"]) == (11, 4)


def test_drafts_are_counted_under_vllms_names(server: LiveServer, in_runs: LiveServer) -> None:
    lines = in_runs.client.get("/metrics").text.splitlines()
    name = "vllm:spec_decode_num"
    for line in (
        f"{name}_drafts_total 4.0",
        f"{name}_draft_tokens_total 8.0",
        f"{name}_accepted_tokens_total 5.0",
        f'{name}_accepted_tokens_per_pos_total{{position="0"}} 3.0',
        f'{name}_accepted_tokens_per_pos_total{{position="1"}} 2.0',
    ):
        assert line in lines
    assert name not in server.client.get("/metrics").text


@pytest.mark.parametrize("fields", [{}, {"force_disable_sp_run": True}])
@pytest.mark.parametrize("where", ["top", "extra_configs"])
def test_a_request_may_do_without_drafts(
    server: LiveServer, where: str, fields: dict[str, Any]
) -> None:
    server.chat(max_tokens=1, **(fields if where == "top" else {"extra_configs": fields}))
    assert server.engine.seen[-1].use_drafts == (not fields)
