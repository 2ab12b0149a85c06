"""How generations are compared; the generation itself runs in test_main."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rtpjax import gpus
from rtpjax.check import generation


def test_agreement_counts_tokens_up_to_the_first_that_differs():
    same, other = [1, 2, 3, 4], [1, 2, 9, 4]
    assert generation.agreement([same], [same]) == 1
    assert generation.agreement([same, same], [same, other]) == 6 / 8
    assert generation.agreement([other], [[9, 2, 9, 4]]) == 0


@pytest.mark.parametrize(("tokens", "status"), [([1, 2], "ok"), ([1, 3], "FAILED")])
def test_float32_tokens_have_to_be_the_same(tokens, status):
    assert generation._compared("", [tokens], [[1, 2]], "").status == status


def test_the_first_layers_of_a_checkpoint():
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    names += [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1, 2, 10)]
    config = {"num_hidden_layers": 11, "layer_types": list("abcdefghijk")}
    empty = {"path": None, "format": "", "doubled": {}, "files": ()}
    whole = SimpleNamespace(**empty, config=config, tensors=dict.fromkeys(names))
    first = generation._first_layers(whole, 2)  # type: ignore[arg-type]
    assert first.config == {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
    assert list(first.tensors) == names[:4]
    assert whole.config["num_hidden_layers"] == 11


def test_a_gpu_by_name():
    gpu = generation.find_gpu("h100")
    assert gpu == gpus.load("h100")
    assert generation.find_gpu(None) is None  # the CPU is not described
