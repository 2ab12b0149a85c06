"""What fails again and again: at every call between the engine and what it is made of.

Whatever the failure, nothing may loop, requests that it does not concern get the answers of a quiet
engine, the others an error without internals, and at the end all pages are free. The engine then
works, or says that it does not.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from rtpjax.engine import engine as engine_module
from rtpjax.engine import outputs as outputs_module
from rtpjax.engine.batch import Batch
from rtpjax.engine.constraint import Constraint
from rtpjax.engine.detokenizer import Detokenizer
from rtpjax.engine.groups import Groups
from rtpjax.engine.request import GenerationRequest, Grammar, RequestOutput, SamplingParams
from rtpjax.engine.runner import Forwarded, StepHandle
from rtpjax.engine.scheduler import ScheduledRow, Scheduler
from rtpjax.engine.sequence import Sequence
from tests.e2e import byte_model
from tests.rtpjax.engine import tiny

JSON = Grammar("json_schema", json.dumps({"type": "object", "maxProperties": 1}))
SAMPLING = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=1)
NUM_REQUESTS = 6
POISON = "poison"

# Name -> what the call is looked up on. Calls of a step fail for the step, the others for a row.
STEP_SEAMS: dict[str, Callable[[tiny.CheckedEngine], tuple[Any, str]]] = {
    "schedule": lambda e: (e._groups, "schedule"),
    "pack": lambda e: (engine_module, "pack"),
    "forward": lambda e: (e._runner, "forward"),
    "collect": lambda e: (e._runner, "collect"),
    "choose": lambda e: (e._runner, "choose"),
}
ROW_SEAMS: dict[str, Callable[[tiny.CheckedEngine], tuple[Any, str]]] = {
    "record": lambda e: (Scheduler, "record"),
    "detokenizer push": lambda e: (Detokenizer, "push"),
    "detokenizer finish": lambda e: (Detokenizer, "finish"),
    "accept": lambda e: (Constraint, "accept"),
    "mask": lambda e: (Constraint, "_fill"),
    "mask read": lambda e: (Constraint, "is_ready"),
    "log-probability": lambda e: (outputs_module, "_logprob"),
}
# What is neither for one step nor for one row, or needs no request.
OTHER_SEAMS: dict[str, Callable[[tiny.CheckedEngine], tuple[Any, str]]] = {
    "reset": lambda e: (e._runner, "reset"),
    "books reset": lambda e: (e._groups, "reset"),
    "add": lambda e: (e._groups, "add"),
    "finish": lambda e: (e._groups, "finish"),
    "which scheduler": lambda e: (e._groups, "of"),
    "retract": lambda e: (Scheduler, "retract"),
    "recover": lambda e: (e, "_recover"),
    "fields": lambda e: (engine_module, "sampling_fields"),
    "biases": lambda e: (engine_module, "biases_of"),
    "detokenizer": lambda e: (Detokenizer, "__init__"),
    **{
        f"device call {name}": lambda e, name=name: (e._runner, f"_device_{name}")
        for name in ("reset", "fill_slot", "fill_masks", "forward", "choose")
    },
}
SEAMS = STEP_SEAMS | ROW_SEAMS | OTHER_SEAMS
# Called without anything that says for which request, or once for each.
OF_ANY_REQUEST = {"log-probability", "detokenizer finish"}
CONSTRAINED = {"accept", "mask", "mask read", "retract", "device call fill_masks"}


def test_every_call_of_the_runner_and_the_schedulers_is_a_seam():
    tree = ast.parse(Path(engine_module.__file__).read_text())
    engine = byte_model.make_engine()
    called = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if ast.unparse(node.func.value) in ("self._runner", "self._groups")
    }
    known = {name for _, name in (find(engine) for find in SEAMS.values())}
    assert called - {"check"} <= known  # check is for tests
    calls = {f"device call {name}" for name in engine._runner._device_calls}
    assert calls == {name for name in SEAMS if name.startswith("device call")}


class Injected(BaseException):
    """As a panic of a Rust library: no Exception."""


class Fault:
    """Makes a call fail.

    Args:
        engine: Whose call.
        seam: Which one.
        when: Of each call: its number and whether it concerns the poisonous request; those that
            do have numbers of their own.
    """

    def __init__(
        self,
        engine: tiny.CheckedEngine,
        seam: str,
        when: Callable[[int, bool], bool],
        monkeypatch: pytest.MonkeyPatch,
    ):
        owner, name = SEAMS[seam](engine)
        original = getattr(owner, name)
        calls = [0, 0]
        self.num_failed = 0

        def call(*args: Any, **options: Any) -> Any:
            is_poison = concerns_poison(engine, [owner, *args])
            calls[is_poison] += 1
            if when((calls[1] if is_poison else sum(calls)) - 1, is_poison):
                self.num_failed += 1
                raise (RuntimeError, Injected)[self.num_failed % 2]("injected")
            if isinstance(original, property):
                return original.fget(*args)
            return original(*args, **options)

        if name.startswith("_device_"):
            monkeypatch.setitem(owner._device_calls, name.removeprefix("_device_"), call)
        else:
            patched = property(call) if isinstance(original, property) else call
            monkeypatch.setattr(owner, name, patched)


def concerns_poison(engine: tiny.CheckedEngine, things: Iterable[Any]) -> bool:
    """Whether a call's arguments have to do with the request of that name."""
    live = engine._live.get(POISON)
    for thing in things:
        found: Iterable[Any] = ()
        match thing:
            case Sequence():
                if thing.request.request_id == POISON:
                    return True
            case ScheduledRow():
                found = [thing.sequence]
            case Batch():
                found = [row for row, _ in thing.rows]
            case Forwarded() | StepHandle():
                found = [thing.batch]
            case Groups():
                found = [*thing.running, *thing.waiting]
            case GenerationRequest():
                if thing.request_id == POISON:
                    return True
            case list():
                found = thing
            case Detokenizer() | Constraint():
                if live is not None and (thing is live[1] or thing is live[0].constraint):
                    return True
        if found and concerns_poison(engine, found):
            return True
    return False


def request(name: str, number: int, *, is_constrained: bool = False) -> GenerationRequest:
    prompt = byte_model.encode(f"{'a long ' * number}prompt {number}")
    return GenerationRequest(name, prompt, SAMPLING, grammar=JSON if is_constrained else None)


def run(
    engine: tiny.CheckedEngine, requests: Iterable[GenerationRequest], most_steps: int = 2000
) -> dict[str, list[RequestOutput]]:
    """Adds all and steps to the end; what cannot be added counts as ended with an error."""
    outputs: dict[str, list[RequestOutput]] = {}
    for asked in requests:
        outputs[asked.request_id] = []
        try:
            engine.add(asked)
        except BaseException:  # noqa: BLE001 (Injected is one)
            failed = RequestOutput(asked.request_id, "", (), finish_reason="error", error="")
            outputs[asked.request_id].append(failed)
            engine.send_probe()
    for _ in range(most_steps):
        if not engine.has_work:
            break
        engine.wake.clear()
        for output in engine.step():
            outputs[output.request_id].append(output)
        if engine.has_work:
            engine.wait()
    assert not engine.has_work, "it loops"
    for parts in outputs.values():
        assert parts[-1].finish_reason is not None
        assert all(output.finish_reason is None for output in parts[:-1])
    return outputs


@pytest.fixture(scope="module")
def quiet() -> dict[str, list[int]]:
    """The tokens of each request of a quiet engine, by name."""
    engine = byte_model.make_engine()
    return {
        name: tiny.tokens_of(outputs)
        for is_constrained in (False, True)
        for name, outputs in run(engine, workload(is_constrained)).items()
    }


def workload(is_constrained: bool) -> list[GenerationRequest]:
    kind = "constrained" if is_constrained else "free"
    return [
        request(f"{kind}-{i}", i, is_constrained=is_constrained and i % 2 == 0)
        for i in range(NUM_REQUESTS)
    ]


def poisoned(is_constrained: bool) -> list[GenerationRequest]:
    requests = workload(is_constrained)
    return [*requests[:2], request(POISON, 3, is_constrained=is_constrained), *requests[2:]]


def check_end(
    engine: tiny.CheckedEngine,
    quiet: dict[str, list[int]],
    outputs: dict[str, list[RequestOutput]],
    log: list[logging.LogRecord],
) -> set[str]:
    """What must hold after any failure; returns the names of those that failed."""
    failed = {name for name, parts in outputs.items() if parts[-1].finish_reason == "error"}
    for name, parts in outputs.items():
        tokens = tiny.tokens_of(parts)
        if name in quiet:
            assert tokens == quiet[name][: len(tokens)]
            assert name in failed or tokens == quiet[name]
        assert "injected" not in (parts[-1].error or "")
    engine.check_integrity()
    stats = engine.stats()
    assert (stats.num_free_pages, stats.num_running, stats.num_waiting) == (stats.num_pages, 0, 0)
    assert len([r for r in log if r.levelno >= logging.ERROR]) <= 3 * len(outputs) + 10
    return failed


def check_later(engine: tiny.CheckedEngine, quiet: dict[str, list[int]]) -> None:
    """Another request works. (A probe asks for as little as this one.)"""
    later = dataclasses.replace(SAMPLING, logprobs=None)
    asked = dataclasses.replace(workload(False)[4], request_id="later", sampling=later)
    assert tiny.tokens_of(run(engine, [asked])["later"]) == quiet["free-4"]


@pytest.mark.parametrize("seam", SEAMS)
def test_what_always_fails_ends_requests_or_the_engine(seam, quiet, monkeypatch, caplog):
    engine = byte_model.make_engine()
    fault = Fault(engine, seam, lambda number, _: True, monkeypatch)
    outputs = run(engine, poisoned(seam in CONSTRAINED))
    failed = check_end(engine, quiet, outputs, caplog.records)
    if not fault.num_failed:
        assert not failed  # nothing reset, nothing retracted
    elif engine.failure is None:
        check_later(engine, quiet)
    else:
        assert failed == outputs.keys() - {
            name for name, parts in outputs.items() if parts[-1].finish_reason == "length"
        }
        assert failed
        with pytest.raises(Exception, match="has failed"):
            engine.add(request("later", 1))


@pytest.mark.parametrize(
    ("seam", "from_call"),
    [
        *itertools.product(
            (seam for seam in (*STEP_SEAMS, *ROW_SEAMS) if seam not in OF_ANY_REQUEST), [0, 3]
        ),
        ("detokenizer finish", 0),
    ],
)
def test_what_fails_for_one_request_ends_that_one_alone(
    seam, from_call, quiet, monkeypatch, caplog
):
    engine = byte_model.make_engine()
    fault = Fault(engine, seam, lambda n, is_poison: is_poison and n >= from_call, monkeypatch)
    outputs = run(engine, poisoned(seam in CONSTRAINED))
    assert fault.num_failed
    assert check_end(engine, quiet, outputs, caplog.records) == {POISON}
    assert re.search(r"\(error [0-9a-f]{12}\)", outputs[POISON][-1].error or "")
    assert engine.failure is None
    check_later(engine, quiet)


def test_two_poisonous_requests_end_and_no_other(quiet, monkeypatch, caplog):
    """Neither is taken for the engine's own failure."""
    engine = byte_model.make_engine()
    requests = workload(False)
    bad = {requests[1].request_id, requests[4].request_id}
    forward = engine._runner.forward

    def fail(batch):
        if bad & {row.sequence.request.request_id for row, _ in batch.rows}:
            raise RuntimeError("injected")
        return forward(batch)

    monkeypatch.setattr(engine._runner, "forward", fail)
    outputs = run(engine, requests)
    assert check_end(engine, quiet, outputs, caplog.records) == bad
    check_later(engine, quiet)


@pytest.mark.parametrize("seam", [*STEP_SEAMS, "device call forward", "device call choose"])
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("after", [0, 4])
def test_what_fails_a_few_times_harms_nobody(seam, times, after, quiet, monkeypatch, caplog):
    """All start again, and answer as if nothing had been."""
    engine = byte_model.make_engine()
    fault = Fault(engine, seam, lambda n, _: after <= n < after + times, monkeypatch)
    outputs = run(engine, workload(False))
    assert fault.num_failed == times
    assert not check_end(engine, quiet, outputs, caplog.records)
    check_later(engine, quiet)


@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize("pattern", ["every second", "every fifth", "from the tenth on"])
def test_any_pattern_of_failures_comes_to_an_end(seam, pattern, quiet, monkeypatch, caplog):
    when = {
        "every second": lambda n, _: n % 2 == 1,
        "every fifth": lambda n, _: n % 5 == 4,
        "from the tenth on": lambda n, _: n >= 10,
    }[pattern]
    engine = byte_model.make_engine()
    Fault(engine, seam, when, monkeypatch)
    outputs = run(engine, poisoned(seam in CONSTRAINED))
    check_end(engine, quiet, outputs, [])


def test_a_failure_that_needs_two_requests_ends_one_of_them(quiet, monkeypatch, caplog):
    engine = byte_model.make_engine()
    forward = engine._runner.forward
    pair = {"free-1", "free-3"}

    def fail(batch):
        if pair <= {row.sequence.request.request_id for row, _ in batch.rows}:
            raise RuntimeError("injected")
        return forward(batch)

    monkeypatch.setattr(engine._runner, "forward", fail)
    outputs = run(engine, workload(False))
    failed = check_end(engine, quiet, outputs, caplog.records)
    assert len(failed) == 1
    assert failed < pair


def test_requests_that_arrive_during_a_trial_wait_for_its_end(quiet, monkeypatch):
    engine = byte_model.make_engine()
    Fault(engine, "forward", lambda n, is_poison: is_poison, monkeypatch)
    requests = poisoned(False)
    late = requests.pop()
    for asked in requests:
        engine.add(asked)
    engine.step()
    assert engine._trial.is_on
    engine.add(late)
    assert engine.stats().num_waiting == len(requests) + 2  # and the probe
    outputs = tiny.run(engine)
    assert tiny.tokens_of(outputs[late.request_id]) == quiet[late.request_id]
    assert [o.finish_reason for o in outputs[POISON]] == ["error"]


def test_requests_end_while_they_wait_for_a_trial(monkeypatch):
    """Aborted, or too late: pages and books are right all the same."""
    engine = byte_model.make_engine()
    Fault(engine, "forward", lambda n, is_poison: is_poison or n < 2, monkeypatch)
    for asked in poisoned(False):
        engine.add(asked)
    engine.step()
    for name in ("free-0", "free-5", POISON):
        output = engine.abort(name)
        assert output is not None
        assert output.finish_reason == "abort"
    engine.check_integrity()
    outputs = tiny.run(engine)
    assert {o[-1].finish_reason for o in outputs.values()} == {"length"}
    assert engine.stats().num_free_pages == engine.stats().num_pages
