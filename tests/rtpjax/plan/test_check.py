"""What the budget refuses, and what the check runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys

import pytest

from pallas_kernels.registry import Op
from rtpjax.engine.wants import VARIANTS
from rtpjax.plan import check, jobs, kernel_cases
from rtpjax.plan.job import ChooseJob, KernelJob, StepJob, from_json
from rtpjax.plan.workers import Worker

STEP = StepJob("llama-3.1-8b", "h100", 1, "decode", 8)
BUDGET = check.read_budget()
LIMITS = check.limits_of(STEP, BUDGET, with_exceptions=False)
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
    "collectives_per_layer": {"all-reduce": 2.0},
    "collectives_beside": {},
    "buffers_in_flight": {"row_matmul": 2, "paged_decode": 2},
    "max_registers": 128,
    "max_shared_bytes": 49152,
    "host_waits": [],
}


def test_a_step_within_its_limits_passes():
    assert check.problems(STEP, GOOD, LIMITS) == []
    assert check.mark_of(STEP, GOOD, BUDGET) == ""


def test_the_limits_are_what_the_project_promises():
    def limits(rows, step="decode"):
        job = dataclasses.replace(STEP, num_tokens=rows, step=step)
        return check.limits_of(job, BUDGET, with_exceptions=False)

    assert [limits(rows)["ratio"] for rows in (1, 8, 64)] == [1.05, 1.05, 1.15]
    assert {limits(rows)["kernels_per_layer"] for rows in (1, 8, 64)} == {16}
    assert limits(64)["temp_mib"] == 64
    zero = ("spill_bytes", "no_tensor_core", "unaliased", "copied", "gathered", "library_calls")
    assert {
        limits(n, step)[name] for n, step in ((64, "decode"), (512, "extend")) for name in zero
    } == {0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ratio": 1.06}, "ratio 1.06, at most 1.05"),
        ({"kernels_per_layer": 17}, "kernels_per_layer 17, at most 16"),
        ({"temp_bytes": 65 << 20}, "temp_mib 65, at most 64"),
        ({"unaliased": ["caches[0].k_pages"]}, "unaliased 1 (caches[0].k_pages), at most 0"),
        ({"copied": ["lm_head.weight"]}, "copied 1 (lm_head.weight), at most 0"),
        ({"gathered": ["lm_head.weight"]}, "gathered 1 (lm_head.weight), at most 0"),
        ({"library_calls": ["__cublas$gemm"]}, "library_calls 1 (__cublas$gemm), at most 0"),
        ({"no_tensor_core": ["dot_1"]}, "no_tensor_core 1 (dot_1), at most 0"),
        ({"spill_bytes": 8}, "spill_bytes 8, at most 0"),
        ({"host_waits": ["while.6"]}, "host_waits 1 (while.6), at most 0"),
        (
            {"buffers_in_flight": {"row_matmul": 3, "paged_decode": 1, "another": 1}},
            "buffers_in_flight: 1 of paged_decode, at least 2",
        ),
        (
            {"collectives_per_layer": {"all-reduce": 3.0}},
            "collectives_per_layer: 3 all-reduce, at most 2",
        ),
        (
            {"collectives_per_layer": {"all-gather": 1.0}},
            "collectives_per_layer: 1 all-gather, at most 0",
        ),
        ({"collectives_beside": {"all-gather": 1}}, "collectives_beside: 1 all-gather, at most 0"),
        ({"collectives_beside": {"all-reduce": 1}}, "collectives_beside: 1 all-reduce, at most 0"),
    ],
)
def test_each_number_can_be_past_its_limit(change, said):
    assert check.problems(STEP, GOOD | change, LIMITS) == [said]
    assert check.mark_of(STEP, GOOD | change, BUDGET) == "FAIL"


def test_layers_with_experts_may_have_more_kernels():
    job = dataclasses.replace(STEP, model="qwen3-30b-a3b")
    assert check.limits_of(job, BUDGET)["kernels_per_layer"] == 24
    assert check.limits_of(dataclasses.replace(job, model="qwen3-8b"), BUDGET)["ratio"] == 1.05
    assert check.limits_of(STEP, BUDGET)["kernels_per_layer"] == 16


def test_choosing_tokens_greedily_is_a_few_kernels_for_which_no_host_waits():
    job = ChooseJob("llama-3.1-8b", "h100", 64)
    result = {"temp_bytes": 157 << 20, "host_waits": []}
    for name in VARIANTS:
        result |= {f"{name}_ratio": 1.08, f"{name}_kernels": 5}
    assert check.mark_of(job, result, BUDGET) == ""
    assert "greedy 1.08 x the logits in 5 kernels, temperature" in check.row(job, result, "")
    for change in (
        {"host_waits": ["everything cond.9"]}, {"greedy_kernels": 10}, {"greedy_ratio": 2.3}
    ):  # fmt: skip
        assert check.mark_of(job, result | change, BUDGET) == "FAIL"


def test_not_compiled_is_past_every_limit():
    error = {"error": "exit status -6: abort"}
    assert check.problems(STEP, error, LIMITS) == ["exit status -6: abort"]
    assert "not compiled" in check.row(STEP, error, check.mark_of(STEP, error, BUDGET))


def test_an_exception_is_for_what_it_names_only():
    exception = {"for": {"gpu": "h100", "num_tokens": 8}, "limits": {"ratio": 1.2}, "why": "..."}
    budget = BUDGET | {"exception": [exception]}
    past = GOOD | {"ratio": 1.19}
    assert check.mark_of(STEP, past, budget) == "*"
    assert check.mark_of(STEP, past | {"spill_bytes": 8}, budget) == "FAIL"
    for change in ({"gpu": "l4"}, {"num_tokens": 1}):
        assert check.mark_of(dataclasses.replace(STEP, **change), past, budget) == "FAIL"


def test_exceptions_say_why_and_name_a_limit():
    for exception in BUDGET.get("exception", []):
        assert exception["why"] and exception["for"]
        job = next(
            j for j in jobs.all_jobs() if exception["for"].items() <= dataclasses.asdict(j).items()
        )
        assert (
            exception["limits"].keys() <= check.limits_of(job, BUDGET, with_exceptions=False).keys()
        )


def test_every_op_has_shapes_and_every_implementation_a_job():
    """The Hopper kernel is for one GPU, fp8 for all but the A100; the rest takes all shapes."""
    all_jobs = jobs.all_jobs()
    for op in kernel_cases.ops().values():
        served = {n for n, i in op.implementations.items() if "gpu" in i.platforms} - {"reference"}
        for name in served:
            for gpu in jobs.GPUS:
                cases = [
                    j.case
                    for j in all_jobs
                    if isinstance(j, KernelJob)
                    and (j.op, j.implementation, j.gpu) == (op.name, name, gpu)
                ]
                is_taken = name != "mosaic" or gpu == "h100"
                every = [case.name for case in kernel_cases.cases(op.name)]
                if gpu == "a100" and name != "xla":
                    every = [case for case in every if "fp8" not in case and "float8" not in case]
                wanted = every[: 1 if name == "xla" else None]
                assert cases == (wanted if is_taken else [])
    counted = [(step, gpu) for steps in jobs.STEPS for step in steps.steps for gpu in steps.gpus]
    assert sum(isinstance(j, StepJob) for j in all_jobs) == len(counted)
    assert sum(isinstance(j, ChooseJob) for j in all_jobs) == 4


def test_each_commit_has_every_kernel_and_kind_of_step_on_some_gpu():
    """Only GPUs are left out, and of kernels only the L4 where the A100 takes the same shape."""
    every, usual = jobs.all_jobs(), jobs.usual_jobs()
    assert [job for job in every if job in set(usual)] == usual
    left_out = [job for job in every if job not in set(usual)]
    assert len(usual) < 0.75 * len(every)

    def kinds(of):
        anywhere = {"gpu": "", "model": "", "tp_size": 0}
        return {dataclasses.replace(j, **anywhere) for j in of if isinstance(j, StepJob)}

    assert kinds(usual) == kinds(every)
    steps = {(j.model, j.gpu) for j in usual if isinstance(j, StepJob)}
    assert {("llama-3.1-8b", gpu) for gpu in jobs.GPUS} <= steps
    for job in left_out:
        if isinstance(job, KernelJob):
            assert job.gpu == "l4" and dataclasses.replace(job, gpu="a100") in usual
    implementations = {(j.op, j.implementation, j.gpu) for j in every if isinstance(j, KernelJob)}
    assert implementations == {
        (j.op, j.implementation, j.gpu) for j in usual if isinstance(j, KernelJob)
    }


def test_an_op_without_shapes_fails():
    with pytest.raises(ValueError, match="op new has no shapes"):
        kernel_cases.cases(Op("new").name)


def test_jobs_survive_json():
    kernel = KernelJob("paged_attention", "xla", "case", "l4")
    for job in (STEP, kernel, ChooseJob("llama-3.1-8b", "h100", 64)):
        assert from_json(json.dumps(dataclasses.asdict(job))) == job


def test_names_of_steps_say_what_is_quantized():
    names = {str(j) for j in jobs.all_jobs() if isinstance(j, StepJob)}
    assert {"llama-3.1-8b int8", "llama-3.1-8b fp8 cache", "qwen2.5-72b int8 x4"} <= names


def test_jobs_of_a_model_on_a_gpu_follow_each_other():
    """A worker compiles them one after the other, and traces what they share once."""
    groups = [key for key, _ in itertools.groupby(jobs.all_jobs(), check.group_of)]
    assert len(groups) == len(set(groups))


def test_the_slowest_are_told(capsys):
    other = dataclasses.replace(STEP, quantization="int8", num_tokens=64)
    check.print_slowest([STEP, other, STEP], [{"seconds": 3.2}, {"seconds": 9.9}, {"error": ""}])
    assert capsys.readouterr().out == (
        "Slowest, seconds of processors: 10 llama-3.1-8b int8 decode[64] h100; "
        "3 llama-3.1-8b decode[8] h100\n"
    )


def test_results_are_kept_by_content(tmp_path):
    runs = []

    def compile_job(request):
        runs.append(request)
        return GOOD

    for sources in ("a", "a", "b"):
        assert check.run(STEP, None, tmp_path, sources, compile_job) == GOOD
    assert len(runs) == 2


def test_a_worker_outlives_the_process_that_a_job_ends():
    """A process that doubles numbers, and dies where there is none."""
    program = (
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    twice = 2 * json.loads(line)['n']\n"
        "    print(json.dumps({'pid': os.getpid(), 'twice': twice}), flush=True)\n"
    )
    worker = Worker([sys.executable, "-c", program])
    one, two = worker.run({"n": 1}), worker.run({"n": 2})
    assert (one["twice"], two["twice"]) == (2, 4) and one["pid"] == two["pid"]
    assert worker.run({"m": 3}) == {"error": "exit status 1: KeyError: 'n'"}
    after = worker.run({"n": 4})
    assert after["twice"] == 8 and after["pid"] != one["pid"]
    worker.close()
