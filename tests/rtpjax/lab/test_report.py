from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from rtpjax import gpus
from rtpjax.lab import decisions, record, report
from rtpjax.lab.report import StageEnd
from rtpjax.lab.stages import STAGES

DEVICE = {"stage": "facts", "note": "device", "kind": "NVIDIA H100 80GB HBM3"}
PREDICTIONS = tomllib.loads(Path(report.__file__).with_name("predictions.toml").read_text())


def figure(id: str, value: float, unit: str = "ms", **more: float) -> dict[str, object]:
    return {"stage": id.split(".")[0], "id": id, "value": value, "unit": unit, **more}


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (5.6, "ms", "as predicted"),
        (5.5, "ms", "as predicted"),
        (11.8, "ms", "MISSED: worse by 2.00x"),
        (2.75, "ms", "MISSED: better by 2.00x"),
        (11.8, "tok/s", "MISSED: better by 2.00x"),
        (2.75, "GB/s", "MISSED: worse by 2.00x"),
    ],
)
def test_a_figure_beside_its_prediction(value, unit, expected):
    assert report.verdict(value, (5.5, 5.9), unit) == expected


def test_a_prediction_is_of_one_gpu_and_one_model():
    assert report.predicted("h100", "llama-3.1-8b", "forward.1") == (5.5, 5.9)
    assert report.predicted("h200", "llama-3.1-8b", "forward.1") == (4.0, 4.4)
    assert report.predicted("l4", "llama-3.1-8b", "forward.1") is None
    assert report.predicted("h100", "qwen2.5-0.5b", "forward.1") is None
    assert report.predicted(None, "llama-3.1-8b", "forward.1") is None


def test_predictions_are_ranges_of_figures_that_stages_make():
    for name, ranges in PREDICTIONS.items():
        if name in gpus.names():
            for id, (least, most) in ranges.items():
                assert least <= most, id
                assert id.split(".")[0] in {*STAGES, "ceiling", "extend"}, id
    every = [id for name in gpus.names() for id in PREDICTIONS.get(name, {})]
    for start in PREDICTIONS["if_missed"]:
        assert any(id.startswith(start) for id in every), start


def test_the_page_has_what_was_measured_what_missed_and_what_follows():
    lines = [
        DEVICE,
        figure("forward.1", 8.0, limit=4.5),
        figure("trace.1.kernels", 7.9),
        {"stage": "moe", "id": "moe.8", "error": "the GPU's memory is full"},
    ]
    ends = [StageEnd("forward", "ok", 12.3), StageEnd("moe", "signal 9: Killed", 4.0)]
    page = report.page(lines, ends, "llama-3.1-8b", command="rtpjax lab")
    assert "| forward.1 | 8 ms | 5.5 to 5.9 | 4.5 | MISSED: worse by 1.36x |" in page
    assert "- forward.1: MISSED: worse by 1.36x. Slower: the sum of stage trace" in page
    assert "| moe.8 | FAILED |  |  | the GPU's memory is full |" in page
    assert "| moe | signal 9: Killed | 4 |" in page
    assert "**1.01: the kernels are the step; what is slow there is in stage trace**" in page
    assert "open: choose.held.greedy.1 was not measured" in page


def test_every_question_has_an_answer_on_both_sides():
    for question in decisions.QUESTIONS:
        answers = set()
        for a in (0.01, 1.0, 1.01, 1.2, 3.0, 100.0):
            for b in (0.01, 1.0, 100.0):
                answers.add(question.answer(*(a, b)[: len(question.needs)]).split(":", 1)[1])
        assert len(answers) >= 2, question.text


def test_questions_ask_for_figures_that_the_gpu_run_makes():
    for question in decisions.QUESTIONS:
        for name in question.needs:
            assert name.split(".")[0] in STAGES, name


def test_a_line_that_was_cut_is_passed_over(tmp_path):
    path = tmp_path / "results.jsonl"
    recorder = record.Recorder(path, "moe", 0.0)
    recorder.measured("moe.1", 2.0, "us", limit=None)
    with path.open("a") as file:
        file.write('{"stage": "moe", "id": "moe.2", "val')
    [line] = record.read(path)
    assert (line["id"], line["value"], line["unit"], "limit" in line) == ("moe.1", 2.0, "us", False)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModuleNotFoundError("No module named 'sanic'", name="sanic"), "the package sanic is not"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "the GPU's memory is full"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
    ],
)
def test_an_attempt_that_fails_is_one_line_and_the_stage_goes_on(tmp_path, error, expected):
    recorder = record.Recorder(tmp_path / "results.jsonl", "moe", 0.0)
    with recorder.attempt("moe.1"):
        raise error
    [line] = record.read(recorder.path)
    assert line["id"] == "moe.1" and line["error"].startswith(expected)
    assert "\n" not in line["error"]
