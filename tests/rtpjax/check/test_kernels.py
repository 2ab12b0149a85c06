"""That kernels are compared, and that a wrong one is found."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.grouped_matmul import OP as GROUPED
from pallas_kernels.registry import Op, Target
from rtpjax.check import kernels
from rtpjax.check.results import Result, is_ok
from rtpjax.plan import kernel_cases

CPU = Target("cpu")


@pytest.fixture
def case():
    return next(kernels._MAKERS["grouped_matmul"](True))


def compared(function, case):
    pallas = dataclasses.replace(GROUPED.implementations["pallas"], function=function)
    return kernels._compare(GROUPED, pallas, case, CPU)


def test_a_right_kernel(case):
    result = compared(GROUPED.implementations["pallas"].function, case)
    assert result.status == "ok"
    assert result.error is not None and result.error < 0.1


def test_a_kernel_that_is_a_percent_off(case):
    right = GROUPED.implementations["pallas"].function
    result = compared(lambda *a, interpret: 1.01 * right(*a, interpret=interpret), case)
    assert result.status == "FAILED"


def test_nan_where_a_row_has_a_meaning_and_where_it_has_none(case):
    right = GROUPED.implementations["pallas"].function

    def poisoned(row, *arguments, interpret):
        return right(*arguments, interpret=interpret).at[row].set(jnp.nan)

    assert compared(partial(poisoned, 0), case).status == "FAILED"
    assert compared(partial(poisoned, case.num_rows), case).status == "ok"


def test_a_kernel_that_cannot_run_is_a_failure_and_one_that_refuses_is_not(case):
    def raises(*arguments, interpret):
        raise NotImplementedError("no such instruction")

    result = compared(raises, case)
    assert (result.status, result.detail) == ("FAILED", "NotImplementedError: no such instruction")
    x, weight, starts = case.arguments
    wide = dataclasses.replace(case, arguments=(x.astype(jnp.float32), weight, starts))
    result = compared(raises, wide)
    assert result.status == "refused"
    assert "x of float32" in result.detail


def test_an_op_without_cases_of_its_own_gets_those_of_gpu_check(monkeypatch):
    """Its name is that of an op there, whose maker here is taken away."""
    monkeypatch.delitem(kernels._MAKERS, "grouped_matmul")
    [case] = kernels._cases(Op("grouped_matmul"), small=True)
    planned = kernel_cases.cases("grouped_matmul")[0]
    assert [a.shape for a in case.arguments] == [a.shape for a in planned.arguments]
    assert np.std(np.asarray(case.arguments[0], np.float32)) == pytest.approx(1, abs=0.1)


def test_nothing_compared_is_not_ok():
    assert not is_ok([])
    assert not is_ok([Result("", "", "skipped", "")])
    assert is_ok([Result("", "", "ok", ""), Result("", "", "refused", "")])
    assert not is_ok([Result("", "", "ok", ""), Result("", "", "FAILED", "")])
