"""Real groups of processes on one machine: the same tokens as one device, and every way to die.

Each group is several server processes that compile their programs. One of them runs in every test
run; what the others show besides is tested within one process in tests/rtpjax/distributed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.conftest import Server
from tests.e2e.hosts import Group, write_model
from tests.rtpjax.engine import tiny

PROMPTS = [list(tiny.prompt(length, seed=length)) for length in (1, 5, 12, 33, 50)]
LONG = 4000  # tokens: under way for as long as a test needs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def complete(server: Server, prompt: list[int], **options: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 16, "ignore_eos": True, **options}
    answer = requests.post(f"{server.url}/v1/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


class OpenRequest(threading.Thread):
    """A request that is open while something happens to the server."""

    def __init__(self, server: Server, *, stream: bool, max_tokens: int = LONG):
        super().__init__(daemon=True)
        self.body = {
            "prompt": PROMPTS[1],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": stream,
        }
        self.server = server
        self.status = 0
        self.text = ""
        self.start()

    def run(self) -> None:
        url = f"{self.server.url}/v1/completions"
        with (
            contextlib.suppress(requests.RequestException),  # a process that was killed
            requests.post(url, json=self.body, stream=True, timeout=300) as answer,
        ):
            self.status = answer.status_code
            for piece in answer.iter_content(None):
                self.text += piece.decode()

    def wait_flowing(self) -> None:
        deadline = time.monotonic() + 120
        while self.text.count("data: ") < 5:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def assert_ended_in_error(self) -> None:
        self.join(60)
        assert not self.is_alive()
        if self.body["stream"] and self.status == 200:
            events = [line[6:] for line in self.text.splitlines() if line.startswith("data: ")]
            assert "error" in json.loads([e for e in events if e != "[DONE]"][-1]), events[-2:]
        else:
            assert self.status >= 500, self.text
            assert "error" in json.loads(self.text)


def seconds_to_unready(server: Server) -> float:
    """How long /health goes on to say that requests are taken."""
    started = time.monotonic()
    while time.monotonic() - started < 60:
        try:
            if requests.get(f"{server.url}/health", timeout=5).status_code != 200:
                break
        except requests.RequestException:
            break
        time.sleep(0.05)
    return time.monotonic() - started


def alone(folder: Path, model: Path) -> Group:
    """One process with one device."""
    return Group(folder, 1, 1, CHECKPOINT_PATH=str(model), COORDINATOR_ADDRESS="")


def check_same(group: Group, one: Group) -> None:
    """Tokens and log-probabilities are those of one device."""
    for prompt in PROMPTS:
        found = complete(group.leader, prompt, logprobs=1)
        expected = complete(one.leader, prompt, logprobs=1)
        assert found["text"] == expected["text"]
        for a, b in zip(
            found["logprobs"]["token_logprobs"], expected["logprobs"]["token_logprobs"], strict=True
        ):
            assert abs(a - b) < 1e-4
    check_followers_know_the_slots(group)


def check_followers_know_the_slots(group: Group) -> None:
    """State of a slot that only some requests have reaches the followers too."""
    allowed = complete(group.leader, PROMPTS[2], allowed_token_ids=[70, 71])
    assert set(allowed["text"].split()) <= {"70", "71"}


def check_ends(group: Group, how: signal.Signals) -> None:
    """A follower that dies or hangs under load ends the group, and every request in an error."""
    running = [OpenRequest(group.leader, stream=True) for _ in range(2)]
    for request in running:
        request.wait_flowing()
    # Two run at once; these wait in the queue.
    waiting = [OpenRequest(group.leader, stream=s) for s in (True, False, False)]
    time.sleep(1)
    group.followers[0].process.send_signal(how)
    assert seconds_to_unready(group.leader) < 10
    for request in (*running, *waiting):
        request.assert_ended_in_error()
    assert group.leader.process.wait(20) == 1, group.logs()


@pytest.mark.processes
def test_two_processes_choose_the_tokens_of_one_until_one_is_killed(
    model: Path, tmp_path: Path
) -> None:
    with (
        Group(tmp_path / "four", 2, 2, CHECKPOINT_PATH=str(model)) as group,
        alone(tmp_path / "one", model) as one,
    ):
        check_same(group, one)
        check_ends(group, signal.SIGKILL)


@pytest.mark.nightly
def test_two_processes_of_four_devices_drain_when_a_follower_is_told_to_end(
    model: Path, tmp_path: Path
) -> None:
    with (
        Group(tmp_path / "eight", 2, 4, CHECKPOINT_PATH=str(model)) as group,
        alone(tmp_path / "one", model) as one,
    ):
        check_same(group, one)
        running = OpenRequest(group.leader, stream=True, max_tokens=60)
        running.wait_flowing()
        group.followers[0].process.send_signal(signal.SIGTERM)
        codes = [server.process.wait(90) for server in group.servers]
        running.join(10)
        assert codes == [0, 0], group.logs()
        assert running.text.rstrip().endswith("data: [DONE]")
        assert '"error"' not in running.text


@pytest.mark.nightly
def test_two_groups_over_two_processes_choose_the_tokens_of_one(
    model: Path, tmp_path: Path
) -> None:
    split = {"TP_SIZE": "2", "DP_SIZE": "2"}
    with (
        Group(tmp_path / "four", 2, 2, CHECKPOINT_PATH=str(model), **split) as group,
        alone(tmp_path / "one", model) as one,
    ):
        expected = [complete(one.leader, p)["text"] for p in PROMPTS]
        with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:  # so that both have rows
            found = list(pool.map(lambda p: complete(group.leader, p)["text"], PROMPTS))
        assert found == expected
        check_followers_know_the_slots(group)


@pytest.mark.nightly
def test_a_follower_that_hangs_under_load(model: Path, tmp_path: Path) -> None:
    with Group(tmp_path / "group", 2, 1, CHECKPOINT_PATH=str(model)) as group:
        check_ends(group, signal.SIGSTOP)


@pytest.mark.nightly
def test_a_leader_that_dies_ends_its_followers(model: Path, tmp_path: Path) -> None:
    with Group(tmp_path / "group", 2, 1, CHECKPOINT_PATH=str(model)) as group:
        OpenRequest(group.leader, stream=True).wait_flowing()
        group.leader.process.kill()
        assert group.followers[0].process.wait(20) != 0


@pytest.mark.nightly
def test_hosts_that_were_started_differently_do_not_start(model: Path, tmp_path: Path) -> None:
    group = Group(tmp_path / "group", 2, 1, CHECKPOINT_PATH=str(model), JOIN_TIMEOUT_S="240")
    other = group.followers[0]
    other.process.kill()
    other.process.wait()
    environment = {**group.common, "WORLD_RANK": "1", "MAX_SEQ_LEN": "512"}
    group.followers[0] = group.servers[1] = Server(tmp_path / "other", **environment)
    try:
        assert all(server.process.wait(240) != 0 for server in group.servers)
        assert "started differently (max_model_len: 4096 and 512" in group.logs()
    finally:
        group.__exit__()
