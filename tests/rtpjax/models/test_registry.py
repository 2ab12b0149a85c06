"""One suite over every architecture: what transformers computes, through the paged cache."""

from __future__ import annotations

import numpy as np
import pytest

from rtpjax.models import ModelConfig, Precision, abstract_state, architectures, init_random
from tests.golden import cases, make_golden
from tests.rtpjax.models.paged_run import PagedRun, golden_model

TOLERANCE = 1e-4
# A second, shorter sequence in every step: a prefix of the prompt has the same logits.
SHORT = 9


@pytest.mark.parametrize("architecture", architectures())
def test_every_architecture_brings_a_golden_case(architecture: str):
    covered = {case.config["architectures"][0] for case in cases.CASES.values()}
    assert architecture in covered, "add a case to tests/golden/cases.py and run make_golden.py"


@pytest.mark.parametrize("case_name", cases.CASES)
def test_whole_prompts_in_one_step(case_name: str):
    prompt, expected = cases.prompt(case_name), cases.golden_logits(case_name)
    run = PagedRun(golden_model(case_name), num_rows=2, max_len=cases.PROMPT_LEN)
    short, whole = run.step([prompt[:SHORT], prompt], "extend")
    np.testing.assert_allclose(whole, expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(short, expected[:SHORT], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case_name", cases.CASES)
def test_chunks_then_token_by_token(case_name: str):
    prompt, expected = cases.prompt(case_name), cases.golden_logits(case_name)
    run = PagedRun(golden_model(case_name), num_rows=2, max_len=cases.PROMPT_LEN)
    # Neither chunk ends at a page's end; both have 14 tokens, so that one program serves both.
    got = [
        run.step([prompt[:9], prompt[:5]], "extend"),
        run.step([prompt[9:15], prompt[5:13]], "extend"),
    ]
    for at in range(15, cases.PROMPT_LEN):
        got.append(run.step([prompt[at : at + 1], prompt[at - 2 : at - 1]], "decode"))
    for row, tokens in ((0, cases.PROMPT_LEN), (1, cases.PROMPT_LEN - 2)):
        logits = np.concatenate([step[row] for step in got])
        np.testing.assert_allclose(logits, expected[:tokens], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case_name", cases.CASES)
@pytest.mark.reference
def test_golden_arrays_are_what_transformers_computes(case_name: str):
    pytest.importorskip("torch")
    np.testing.assert_allclose(
        cases.golden_logits(case_name), make_golden.reference_logits(case_name), atol=1e-5
    )


@pytest.mark.parametrize("case_name", cases.CASES)
@pytest.mark.reference
def test_parameters_are_the_tensors_that_transformers_saves(case_name: str):
    pytest.importorskip("torch")
    config = ModelConfig.from_hf(cases.CASES[case_name].config)
    declared = abstract_state(config, Precision.of("FP32", "cpu"))
    saved = make_golden.named_tensors(make_golden.reference_model(case_name))
    if config.tie_word_embeddings:
        del saved["lm_head.weight"]  # the same tensor as embed_tokens; left out of the file
    assert {name: spec.shape for name, spec in declared.items()} == {
        name: tuple(tensor.shape) for name, tensor in saved.items()
    }


@pytest.mark.parametrize("case_name", ["llama_biases", "qwen3"])
def test_half_precision_weights_stay_close(case_name: str):
    precision = Precision.of("BF16", "cpu")
    run = PagedRun(golden_model(case_name, precision), num_rows=1, max_len=cases.PROMPT_LEN)
    (logits,) = run.step([cases.prompt(case_name)], "extend")
    assert logits.dtype == np.float32
    error = np.abs(logits - cases.golden_logits(case_name)).max()
    # Rounding weights and products' inputs to 8 bits; 0 would mean that nothing was rounded.
    assert 1e-3 < error < 0.25


def test_all_half_precision_as_on_a_gpu():
    precision = Precision.of("BF16", "gpu")
    model = golden_model("llama", precision)
    run = PagedRun(model, num_rows=1, max_len=cases.PROMPT_LEN, dtype=precision.cache)
    (logits,) = run.step([cases.prompt("llama")], "extend")
    assert logits.dtype == np.float32
    assert np.abs(logits - cases.golden_logits("llama")).max() < 0.4


def test_random_weights_follow_the_seed():
    config = ModelConfig.from_hf(cases.CASES["llama"].config)
    one, same, other = (
        PagedRun(init_random(config, Precision.of("FP32", "cpu"), seed), 1, 4).leaves
        for seed in (0, 0, 1)
    )
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert not (one[0] == other[0]).all()
