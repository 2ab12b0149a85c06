from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.http_host import Round, _Stream, report

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Transport:
    def close(self) -> None:
        pass


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def count(data: bytes, cuts: list[int]) -> int:
    stream = _Stream(asyncio.get_running_loop().create_future())
    stream.transport = Transport()
    ends = sorted({max(16, cut % len(data)) for cut in cuts})  # the status comes in one piece
    for start, end in zip([0, *ends], [*ends, len(data)], strict=True):
        stream.data_received(data[start:end])
    stream.connection_lost(None)
    return await stream.ended


@given(st.integers(1, 9), st.lists(st.integers(0, 999), max_size=9))
def test_events_are_counted_however_they_are_cut(num_events, cuts):
    events = b"".join(chunk(b'data: {"n":%d}\n\n' % i) for i in range(num_events))
    data = HEAD + events + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    assert asyncio.run(count(data, cuts)) == num_events


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"HTTP/1.1 429 Too Many\r\n\r\n", "refused"),
        (HEAD + chunk(b"data: 1\n\n"), "closed a stream"),
    ],
)
def test_a_stream_that_fails_says_so(data, message):
    with pytest.raises(RuntimeError, match=message):
        asyncio.run(count(data, []))


def test_the_ratio_is_that_of_each_round():
    rounds = [[Round(100, 50, 1.0, 0.001, 0.1), Round(100, 100, 2.0, 0.002, 0.1)]] * 3
    first, last = report(["new", "old"], rounds).splitlines()[-2:]
    assert first.split()[:3] == ["new", "100", "2.00"]
    assert last.split()[:3] == ["old", "50.00", "1.00"]
