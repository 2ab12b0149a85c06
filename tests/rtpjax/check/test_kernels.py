"""That kernels are compared, and that a wrong one is found."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.grouped_matmul import OP as GROUPED
from pallas_kernels.registry import Op, Target
from rtpjax.check import cases, kernels
from rtpjax.check.cases import draw
from rtpjax.check.compare import Job, compile_job, run_job
from rtpjax.check.results import Result, is_ok
from rtpjax.errors import ConfigError
from rtpjax.plan import kernel_cases

CPU = Target("cpu")


@pytest.fixture(scope="module")
def drawn():
    return jax.jit(draw)()


@pytest.fixture
def case():
    return next(cases.grouped_matmul_cases(True))


def compared(function, case, drawn):
    pallas = dataclasses.replace(GROUPED.implementations["pallas"], function=function)
    job = Job(GROUPED.name, pallas, GROUPED.implementations["reference"], case)
    found = compile_job(job, CPU)
    return found if isinstance(found, Result) else run_job(job, found, drawn, CPU)


def test_a_right_kernel(case, drawn):
    result = compared(GROUPED.implementations["pallas"].function, case, drawn)
    assert result.status == "ok"
    assert result.error is not None and result.error < 0.1
    assert result.compile_s is not None and result.compile_s > 0
    assert result.run_us is None  # interpreted, it would say nothing


def test_a_kernel_that_is_a_percent_off(case, drawn):
    right = GROUPED.implementations["pallas"].function
    result = compared(lambda *a, interpret: 1.01 * right(*a, interpret=interpret), case, drawn)
    assert result.status == "FAILED"


def test_nan_where_a_row_has_a_meaning_and_where_it_has_none(case, drawn):
    right = GROUPED.implementations["pallas"].function

    def poisoned(row, *arguments, interpret):
        return right(*arguments, interpret=interpret).at[row].set(jnp.nan)

    result = compared(partial(poisoned, 0), case, drawn)
    assert result.status == "FAILED"
    assert json.loads(result.to_json())["error"] == 1e30  # which JSON has, and infinity not
    assert compared(partial(poisoned, case.num_rows), case, drawn).status == "ok"


def test_one_that_refuses(case, drawn):
    def make(drawn, places):
        (x, *others), named = case.make(drawn, places)
        return (x.astype(jnp.float32), *others), named

    right = GROUPED.implementations["pallas"].function
    result = compared(right, dataclasses.replace(case, make=make), drawn)
    assert result.status == "refused"
    assert "x of float32" in result.detail


def test_an_op_without_cases_of_its_own_gets_those_of_gpu_check(monkeypatch, drawn):
    """Its name is that of an op there, whose maker here is taken away."""
    monkeypatch.delitem(cases.MAKERS, "grouped_matmul")
    [case] = kernels.cases_of(Op("grouped_matmul"), small=True)
    planned = kernel_cases.cases("grouped_matmul")[0]
    shapes, _ = case.shapes()
    assert [a.shape for a in shapes] == [a.shape for a in planned.arguments]
    x = np.asarray(case.make(drawn, case.places)[0][0], np.float32)
    assert np.std(x) == pytest.approx(1, abs=0.1)


def test_what_decodes_need_comes_first():
    names = [*kernels.known_ops()]
    assert names[:2] == ["row_matmul", "paged_attention"]
    assert set(names) == set(kernel_cases.ops())
    for name in names[:2]:
        first = kernels.cases_of(kernel_cases.ops()[name], small=False)[0]
        assert "llama-3.1-8b" in first.name.lower()


def test_names_that_are_not_known():
    def refusal(**options: Any) -> str:
        with pytest.raises(ConfigError) as error:
            kernels.check_kernels(CPU, **options)
        return str(error.value)

    assert "'grupped'; ops: row_matmul, paged_attention, rotate" in refusal(only="grupped")
    for where in ("implementations", "without"):
        said = refusal(**{where: ["cuda"]})
        assert "implementation 'cuda'; known: pallas, xla, mosaic" in said
    assert "No implementation is left" in refusal(implementations=["xla"], without=["xla"])
    assert "more than 0 seconds" in refusal(case_limit_s=0)


def test_implementations_that_need_a_gpu_are_said_to_be_skipped():
    [result] = kernels.check_kernels(
        CPU, only="paged", implementations=["mosaic"], every_shape=False
    )
    assert (result.what, result.status) == ("paged_attention/mosaic", "skipped")


def test_nothing_compared_is_not_ok():
    assert not is_ok([])
    assert not is_ok([Result("", "", "skipped", "")])
    assert is_ok([Result("", "", "ok", ""), Result("", "", "refused", "")])
    assert not is_ok([Result("", "", "ok", ""), Result("", "", "FAILED", "")])
    assert not is_ok([Result("", "", "ok", ""), Result("", "", "not run", "")])
