"""What crosses between server and engine is plain: it can be pickled, and is the same after."""

from __future__ import annotations

import dataclasses
import pickle
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtpjax.engine import border
from rtpjax.engine.failures import error_of, failed
from rtpjax.engine.frames import Frames, frame
from rtpjax.engine.request import (
    EngineStats,
    GenerationRequest,
    Grammar,
    ReasoningLimit,
    RequestOutput,
    SamplingParams,
    TokenLogprob,
)
from rtpjax.errors import (
    CheckpointError,
    DrainingError,
    EngineError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
)

PLAIN = (str, int, float, bool, type(None), tuple, list, dict, frozenset)
OUTPUT = RequestOutput("r", "text", (1,), (TokenLogprob(1, -0.5, ((1, -0.5), (2, -1.0))),), "stop")
MORE = RequestOutput("r", " more", (4, 5), num_output_tokens=3)
RECORDS = [
    GenerationRequest("r", (1, 2)),
    GenerationRequest(
        "r",
        (1,),
        SamplingParams(stop=("a",), logit_bias=((1, 2.0),), bad_words=((1, 2),), seed=3),
        "salt",
        1,
        Grammar("lark", "start: x", instead=Grammar("regex", "a")),
        ReasoningLimit(3, "<think>", "</think>"),
        2.0,
    ),
    border.Abort("r"),
    border.Loaded(64, 128, frozenset([1, 2]), 10, EngineStats()),
    border.Report.of(
        [OUTPUT, MORE, failed("s", RequestError("no", param="p"))], EngineStats(1, 2), 3, "x"
    ),
    border.Failed("a host is gone"),
    border.Leave(),
    border.Ended(None),
]


def test_there_is_a_record_of_each_kind():
    kinds = {*get_args(border.ToEngine), *get_args(border.FromEngine)}
    assert kinds == {type(record) for record in RECORDS} | {border.LoadFailed}


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_records_are_plain_and_come_back_the_same(record):
    def check(value):
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                check(getattr(value, field.name))
            return
        assert isinstance(value, PLAIN), value
        if isinstance(value, tuple | list | frozenset):
            for item in value:
                check(item)

    check(record)
    back = pickle.loads(pickle.dumps(record))
    assert back == record
    assert type(back) is type(record)


@pytest.mark.parametrize(
    "error",
    [
        EngineError("broken"),
        RequestError("wrong", param="p", code="c"),
        QueueFullError("full", code="queue_full"),
        DrainingError("leaving", code="stopped"),
        RequestTimeoutError("late", param="timeout_ms", code="timeout"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_error_is_the_same_on_the_other_side(error):
    output = pickle.loads(pickle.dumps(failed("r", error)))
    back = error_of(output)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_what_goes_wrong_at_the_start_crosses_whatever_it_is():
    error = CheckpointError("tensor x is missing")
    assert border.portable(error) is error

    class LocalError(CheckpointError):
        """Cannot be pickled."""

        def __init__(self, text, other=None):
            super().__init__(text)
            self.other = lambda: other

    back = border.portable(LocalError("tensor y"))
    assert str(back) == "tensor y"
    assert "MemoryError: 5 GB" in str(border.portable(MemoryError("5 GB")))


@given(st.lists(st.text()), st.data())
def test_frames_do_not_depend_on_how_they_are_cut(texts, data):
    stream = b"".join(map(frame, texts))
    found, ended = [], []
    frames = Frames(found.append, lambda: ended.append(1))
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        frames.data_received(stream[:size])
        stream = stream[size:]
    frames.connection_lost(None)
    assert found == texts
    assert ended == [1]
