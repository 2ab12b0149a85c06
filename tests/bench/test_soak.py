"""The load and soak script, short: the real engine with a tiny model behind the real server."""

from __future__ import annotations

import json
import os

import pytest

from bench.cli import main
from bench.soak import Soak, Window
from rtpjax.engine.async_engine import AsyncLLMEngine
from rtpjax.engine.thread import ThreadLink
from tests.e2e import byte_model
from tests.server.live_server import LiveServer, wait_until

SHORT = ["--clients", "16", "--minutes", "0.2", "--window-s", "4", "--num-questions", "12"]


@pytest.mark.slow
def test_rude_clients_change_nobody_elses_answer(tmp_path, capsys):
    inner = byte_model.make_engine()
    engine = AsyncLLMEngine(ThreadLink(lambda _: inner), byte_model.tokenizer(), "bytes")
    results = tmp_path / "soak.json"
    with LiveServer(engine) as server:
        wait_until(lambda: engine.is_ready)
        where = ["--url", f"{server.url}/v1", "--pid", str(os.getpid()), "--json", str(results)]
        status = main(["soak", *where, *SHORT, "--no-chat"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    document = json.loads(results.read_text())
    assert document["failures"] == []
    assert sum(window["num_right"] for window in document["windows"]) > 20
    assert len(document["windows"]) >= 3
    statuses = document["statuses"]
    assert statuses["/liveness: 200"] > 10
    assert {who.split(":")[0] for who in statuses} >= {"hang up", "rubbish", "huge bodies"}
    assert byte_model.runner().num_recompiles == 0


@pytest.mark.parametrize(
    ("spoil", "failure"),
    [
        (lambda soak: setattr(soak.now, "num_wrong", 1), "1 answers were not those"),
        (lambda soak: setattr(soak.now, "num_right", 0), "nobody got an answer"),
        (lambda soak: soak.statuses.update({("rubbish", 500): 2}), "2 answers had a status of 500"),
        (lambda soak: setattr(soak, "num_free_tokens", 60), "40 tokens of the cache are held"),
        (
            lambda soak: soak.windows.extend(Window(rss_mib=100.0 * i) for i in range(9)),
            "memory grew",
        ),
    ],
)
def test_what_must_not_be_fails_the_run(spoil, failure):
    soak = Soak(num_free_tokens=100, num_tokens=100)
    soak.now.num_right = 9
    assert soak.failures() == []
    spoil(soak)
    [found] = soak.failures()
    assert failure in found
