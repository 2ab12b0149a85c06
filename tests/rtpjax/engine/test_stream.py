"""Outputs that a slow reader gets joined say the same as those that a fast one gets one by one."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from rtpjax.engine.border import Report
from rtpjax.engine.request import EngineStats, RequestOutput, TokenLogprob
from rtpjax.engine.stream import Stream, has_only_tokens


@st.composite
def answers(draw) -> list[RequestOutput]:
    """What an engine says of one request: some tokens at a time, then its end."""
    steps = draw(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=8))
    has_logprobs, end = draw(st.booleans()), draw(st.sampled_from(["stop", "error", "abort"]))
    outputs, count = [], 0
    for i, tokens in enumerate(steps):
        count += len(tokens)
        is_last = i == len(steps) - 1
        outputs.append(
            RequestOutput(
                "r",
                draw(st.text(max_size=3)),
                tuple(tokens),
                tuple(TokenLogprob(t, -1.0 * t) for t in tokens) if has_logprobs else None,
                end if is_last else None,
                "END" if is_last else None,
                num_prompt_tokens=5,
                num_output_tokens=count,
                num_cached_tokens=2,
                wait_s=0.5,
                prompt_logprobs=(None, TokenLogprob(1, -1.0)) if i == 0 else None,
                error="why" if is_last and end == "error" else None,
            )
        )
    return outputs


@given(answers(), st.data())
def test_a_reader_gets_all_in_order_however_late_it_is(outputs, data):
    async def main() -> list[RequestOutput]:
        stream, found = Stream(), []
        for output in outputs:
            report = Report.of([output], EngineStats(), 0, None)
            for token_ids, text in zip(report.token_ids, report.texts, strict=True):
                stream.add_tokens(token_ids, text)
            for whole in report.outputs:
                stream.add(whole)
            if data.draw(st.booleans()):
                found += await stream.take()
        if not found or found[-1].finish_reason is None:
            found += await stream.take()
        return found

    found, last = asyncio.run(main()), outputs[-1]
    assert "".join(o.text for o in found) == "".join(o.text for o in outputs)
    for field in ("token_ids", "logprobs", "prompt_logprobs"):
        parts = [[i for o in side for i in getattr(o, field) or ()] for side in (found, outputs)]
        assert parts[0] == parts[1], field
    num_tokens = 0
    for output in found:
        num_tokens += len(output.token_ids)
        assert output.num_output_tokens == num_tokens
        assert (output.request_id, output.num_prompt_tokens) == ("r", 5)
        assert (output.num_cached_tokens, output.wait_s) == (2, 0.5)
    assert [o.finish_reason for o in found[:-1]] == [None] * (len(found) - 1)
    assert found[-1].finish_reason == last.finish_reason
    assert (found[-1].stop_reason, found[-1].error) == (last.stop_reason, last.error)
    if last.finish_reason != "stop":  # what came before an error is not lost with it
        assert found[-1] == last


def test_a_reader_waits_and_is_woken():
    async def main():
        stream = Stream()
        first = RequestOutput("r", "a", (1,), num_output_tokens=1)
        taking = asyncio.create_task(stream.take())
        await asyncio.sleep(0)
        stream.add(first)
        assert await taking == [first]
        taking = asyncio.create_task(stream.take())
        await asyncio.sleep(0)
        stream.add_tokens((2,), "b")
        stream.add_tokens((3,), "c")
        [output] = await taking
        assert (output.text, output.token_ids, output.num_output_tokens) == ("bc", (2, 3), 3)
        taking = asyncio.create_task(stream.take())
        await asyncio.sleep(0)
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        stream.add_tokens((4,), "d")
        assert (await stream.take())[0].text == "d"

    asyncio.run(main())


def test_a_request_ends_once():
    async def main():
        stream, end = Stream(), RequestOutput("r", "", (), finish_reason="error", error="first")
        stream.add(end)
        stream.add(RequestOutput("r", "", (), finish_reason="error", error="second"))
        assert await stream.take() == [end]

    asyncio.run(main())


def test_a_first_output_is_whole():
    assert not has_only_tokens(RequestOutput("r", "a", (1,), num_output_tokens=1))
    assert has_only_tokens(RequestOutput("r", "b", (2,), num_output_tokens=2))
    assert has_only_tokens(RequestOutput("r", "", (), num_output_tokens=2))
