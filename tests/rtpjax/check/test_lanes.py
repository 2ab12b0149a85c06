"""Kernels that hang, die and are wrong are told apart, and the others' results are there."""

from __future__ import annotations

import functools
import os

from pallas_kernels.registry import Target
from rtpjax.check import lanes
from tests.rtpjax.check import faults

CPU = Target("cpu")


def run(jobs, *, parallel=1, case_limit_s=60.0):
    """Statuses and details by implementation and case."""
    results = lanes.run_jobs(jobs, CPU, parallel=parallel, case_limit_s=case_limit_s)
    return {(r.implementation, r.case): (r.status, r.detail) for r in results}


def test_faults_are_told_apart_and_end_only_their_own_process():
    well = functools.partial(faults.job, "well")
    ill = functools.partial(faults.job, "ill")
    jobs = [ill(f) for f in (faults.dies, faults.poisons, faults.hangs, faults.right)]
    jobs += [well(f) for f in (faults.right, faults.wrong, faults.raises)]
    found = run(jobs, parallel=2, case_limit_s=5)
    assert found["well", "right"][0] == "ok"
    status, detail = found["well", "wrong"]
    assert status == "FAILED" and detail.startswith("largest error ")
    assert found["well", "raises"] == ("FAILED", "KeyError: 'no such instruction'")
    assert found["ill", "dies"] == ("FAILED", "its process ended as it ran: exit status 9")
    assert found["ill", "poisons"][0] == "FAILED"
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in found["ill", "poisons"][1]
    assert found["ill", "hangs"] == ("FAILED", "took longer than 5 s to run")
    assert found["ill", "right"][0] == "ok"
    assert len(found) == len(jobs)


def test_the_one_of_several_compilations_that_ends_the_process_is_found():
    jobs = [faults.job("pallas", f) for f in (faults.wrong, faults.dies_in_tracing, faults.right)]
    found = run(jobs, parallel=3)
    assert found["pallas", "dies_in_tracing"] == (
        "FAILED",
        "its process ended as it compiled: exit status 7: LLVM ERROR: cannot select",
    )
    assert found["pallas", "wrong"][1].startswith("largest error")
    assert found["pallas", "right"][0] == "ok"


def test_what_is_left_of_a_process_that_ended_too_often_is_not_run(monkeypatch):
    monkeypatch.setattr(lanes, "_MAX_STARTS", 1)
    found = run([faults.job("mosaic", f) for f in (faults.hangs_in_tracing, faults.right)], case_limit_s=2)
    why = "took longer than 2 s to compile"
    assert found["mosaic", "hangs_in_tracing"] == ("FAILED", why)
    assert found["mosaic", "right"] == (
        "not run",
        f"its process ended 1 times, at last: hangs_in_tracing {why}",
    )


def test_a_process_that_does_not_start():
    """It is asked for a GPU, which is not there."""
    jobs = [faults.job("pallas", f) for f in (faults.right, faults.wrong)]
    results = list(lanes.run_jobs(jobs, Target("gpu", 70), parallel=1, case_limit_s=60))
    assert [r.status for r in results] == ["not run", "not run"]
    assert "did not start: exit status 1: RuntimeError: this process runs on cpu" in results[0].detail


def test_a_case_that_the_device_has_no_memory_for():
    found = run([faults.job("pallas", f) for f in (faults.needs_too_much, faults.right)])
    status, detail = found["pallas", "needs_too_much"]
    assert status == "FAILED"
    assert detail.startswith("the device has too little free memory for this case: ")
    assert found["pallas", "right"][0] == "ok"


def test_processes_end_with_the_one_who_asks():
    results = lanes.run_jobs([faults.job("a", faults.right)] * 2, CPU, parallel=1, case_limit_s=60)
    next(results)
    [lane] = results.gi_frame.f_locals["lanes"]
    process = lane.worker._process
    assert process.is_alive()
    results.close()
    assert not process.is_alive()
    assert os.waitstatus_to_exitcode(9) == -9
