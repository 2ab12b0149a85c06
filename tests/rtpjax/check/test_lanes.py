"""Kernels that hang, die and are wrong are told apart, and the others' results are there."""

from __future__ import annotations

import functools
import multiprocessing

import pytest

from pallas_kernels.registry import Target
from rtpjax.check import lanes
from tests.rtpjax.check import faults

CPU = Target("cpu")


def run(jobs, *, parallel=1, case_limit_s=60.0):
    """Statuses and details by implementation and case."""
    results = lanes.run_jobs(jobs, CPU, parallel=parallel, case_limit_s=case_limit_s)
    return {(r.implementation, r.case): (r.status, r.detail) for r in results}


@pytest.mark.processes
def test_faults_are_told_apart_and_end_only_their_own_process():
    well = functools.partial(faults.job, "well")
    ill = functools.partial(faults.job, "ill")
    jobs = [ill(f) for f in (faults.hangs, faults.poisons, faults.dies, faults.right)]
    jobs += [well(f) for f in (faults.right, faults.wrong, faults.raises, faults.needs_too_much)]
    found = run(jobs, parallel=2, case_limit_s=10)
    assert found["well", "right"][0] == "ok"
    status, detail = found["well", "wrong"]
    assert status == "FAILED" and detail.startswith("largest error ")
    assert found["well", "raises"] == ("FAILED", "KeyError: 'no such instruction'")
    status, detail = found["well", "needs_too_much"]
    assert status == "FAILED"
    assert detail.startswith("the device has too little free memory for this case: ")
    assert found["ill", "dies"] == ("FAILED", "its process ended as it ran: exit status 9")
    assert found["ill", "poisons"][0] == "FAILED"
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in found["ill", "poisons"][1]
    assert found["ill", "hangs"] == ("FAILED", "took longer than 10 s to run")
    assert found["ill", "right"][0] == "ok"
    assert len(found) == len(jobs)


@pytest.mark.processes
def test_the_one_of_several_compilations_that_ends_the_process_is_found(monkeypatch):
    """All three end with it; one at a time tells which it was. It is the last that may fail so."""
    monkeypatch.setattr(lanes, "_MAX_FAULTS", 1)
    jobs = [faults.job("pallas", f) for f in (faults.wrong, faults.dies_in_tracing, faults.right)]
    found = run(jobs, parallel=3)
    said = "exit status 7: LLVM ERROR: cannot select"
    assert found["pallas", "wrong"][1].startswith("largest error")
    assert found["pallas", "dies_in_tracing"] == (
        "FAILED",
        f"its process ended as it compiled: {said}",
    )
    assert found["pallas", "right"] == (
        "not run",
        f"its process ended 1 times, at last: {said}",
    )


@pytest.mark.processes
def test_a_process_that_does_not_start():
    """It is asked for a GPU, which is not there."""
    jobs = [faults.job("pallas", f) for f in (faults.right, faults.wrong)]
    results = list(lanes.run_jobs(jobs, Target("gpu", 70), parallel=1, case_limit_s=60))
    assert [r.status for r in results] == ["not run", "not run"]
    said = "its process did not start: exit status 1: RuntimeError: this process runs on cpu"
    assert results[0].detail.startswith(said)


def test_processes_end_with_the_one_who_asks():
    results = lanes.run_jobs([faults.job("a", faults.right)] * 2, CPU, parallel=1, case_limit_s=60)
    next(results)
    assert multiprocessing.active_children()
    results.close()
    assert not multiprocessing.active_children()
