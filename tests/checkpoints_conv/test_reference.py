"""What we write is what transformers loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from checkpoints_conv.convert import Conversion, convert
from checkpoints_conv.readers import open_checkpoint
from tests.checkpoints_conv import tiny


@pytest.mark.reference
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_transformers_loads_a_converted_gguf(tmp_path: Path, family: str, is_tied: bool) -> None:
    torch = pytest.importorskip("torch")
    config = tiny.config(family, tie_word_embeddings=is_tied)
    path = tiny.write_gguf(tmp_path / "m.gguf", config, tiny.weights(config))
    convert(path, tmp_path / "out", Conversion(has_progress=False))
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values()), report
    state = model.state_dict()
    checkpoint = open_checkpoint(path)
    for name in checkpoint.tensors:
        np.testing.assert_array_equal(state[name].numpy(), checkpoint.read(name))
