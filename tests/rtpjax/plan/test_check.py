"""What the budget refuses, and what the check runs."""

from __future__ import annotations

import json

import pytest

from pallas_kernels.registry import Op
from rtpjax.plan import check, kernel_cases
from rtpjax.plan.job import KernelJob, StepJob, from_json

STEP = StepJob("llama-3.1-8b", "h100", 1, "decode", 8)
BUDGET = check.read_budget()
GOOD = {
    "ratio": 1.04,
    "kernels_per_layer": 13,
    "temp_bytes": 60 << 20,
    "unaliased": [],
    "copied": [],
    "gathered": [],
    "library_calls": [],
    "no_tensor_core": [],
    "spill_bytes": 0,
    "collectives_per_layer": {},
    "max_registers": 128,
    "max_shared_bytes": 49152,
}


def test_a_step_within_its_goal_passes():
    assert check.problems(STEP, GOOD, BUDGET["goal"]) == []
    assert check.problems(STEP, GOOD, BUDGET["limit"]) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ratio": 1.06}, "ratio 1.06, at most 1.05"),
        ({"kernels_per_layer": 15}, "kernels_per_layer 15, at most 14"),
        ({"temp_bytes": 65 << 20}, "temp_mib 65, at most 64"),
        ({"unaliased": ["caches[0].k_pages"]}, "unaliased 1 (caches[0].k_pages), at most 0"),
        ({"copied": ["lm_head.weight"]}, "copied 1 (lm_head.weight), at most 0"),
        ({"gathered": ["lm_head.weight"]}, "gathered 1 (lm_head.weight), at most 0"),
        ({"library_calls": ["__cublas$gemm"]}, "library_calls 1 (__cublas$gemm), at most 0"),
        ({"no_tensor_core": ["dot_1"]}, "no_tensor_core 1 (dot_1), at most 0"),
        ({"spill_bytes": 8}, "spill_bytes 8, at most 0"),
        ({"collectives_per_layer": {"all-reduce": 3.0}}, "3 all-reduce a layer, at most 2"),
        ({"collectives_per_layer": {"all-gather": 1.0}}, "1 all-gather a layer, at most 0"),
    ],
)
def test_each_number_can_be_past_the_goal(change, said):
    assert check.problems(STEP, GOOD | change, BUDGET["goal"]) == [said]


def test_not_compiled_is_past_every_limit():
    assert check.problems(STEP, {"error": "exit status -6: abort"}, BUDGET["limit"]) == [
        "exit status -6: abort"
    ]
    assert "not compiled" in check.row(STEP, {"error": "x"}, "FAIL")


def test_limits_are_not_stricter_than_goals():
    for rows in ("1", "8", "64"):
        for name, goals in BUDGET["goal"]["decode"].items():
            assert BUDGET["limit"]["decode"][name][rows] >= goals[rows]


def test_every_op_has_shapes_and_every_implementation_a_job():
    """The Hopper kernel is for one GPU; what may be chosen without a name takes all shapes."""
    jobs = check.all_jobs()
    for op in kernel_cases.ops().values():
        served = {n for n, i in op.implementations.items() if "gpu" in i.platforms} - {"reference"}
        for name in served:
            for gpu in check.GPUS:
                cases = [
                    j.case
                    for j in jobs
                    if isinstance(j, KernelJob)
                    and (j.op, j.implementation, j.gpu) == (op.name, name, gpu)
                ]
                is_taken = name != "mosaic" or gpu == "h100"
                every = [case.name for case in kernel_cases.cases(op.name)]
                assert cases == (every if is_taken else [])
    assert sum(isinstance(j, StepJob) for j in jobs) == 5 * 4 * 4


def test_an_op_without_shapes_fails():
    with pytest.raises(ValueError, match="op new has no shapes"):
        kernel_cases.cases(Op("new").name)


def test_jobs_survive_json():
    import dataclasses

    for job in (STEP, KernelJob("paged_attention", "xla", "case", "l4")):
        assert from_json(json.dumps(dataclasses.asdict(job))) == job


def test_results_are_kept_by_content(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(check, "_run_in_subprocess", lambda text, ptxas: runs.append(text) or GOOD)
    for sources in ("a", "a", "b"):
        assert check.run(STEP, None, tmp_path, sources) == GOOD
    assert len(runs) == 2
