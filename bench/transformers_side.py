"""transformers' `generate` as a side of the offline comparison, at its faster dtype."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch  # pyright: ignore[reportMissingImports]  # an extra, "reference"
from transformers import AutoModelForCausalLM

from bench.side import Prompts, serve_side

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
PROBE_LEN = 16


class TransformersSide:
    """Generates with a static batch of equal lengths, greedily and through eos.

    Which dtype is faster differs between processors and batch sizes: each batch size tries both.
    """

    def __init__(self, model_path: str):
        torch.set_num_threads(os.cpu_count() or 1)
        self._models: dict[str, Any] = {
            name: AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype).eval()
            for name, dtype in DTYPES.items()
        }
        self._dtypes: dict[int, str] = {}
        self._last = ""

    def generate(self, prompts: Prompts, output_len: int) -> list[list[int]]:
        batch_size = len(prompts)
        if batch_size not in self._dtypes:
            # Inside the timed call, but only in the warm-up's: it comes first for each batch size.
            self._dtypes[batch_size] = self._faster_dtype(prompts, min(PROBE_LEN, output_len))
        self._last = self._dtypes[batch_size]
        return self._generate(self._last, prompts, output_len)

    def describe(self) -> tuple[float | None, str]:
        return None, self._last

    def _faster_dtype(self, prompts: Prompts, output_len: int) -> str:
        elapsed_s: dict[str, float] = {}
        for name in self._models:
            self._generate(name, prompts, 2)
            start_s = time.perf_counter()
            self._generate(name, prompts, output_len)
            elapsed_s[name] = time.perf_counter() - start_s
        print(f"transformers, batch {len(prompts)}: {elapsed_s}", file=sys.stderr)
        return min(elapsed_s, key=elapsed_s.__getitem__)

    def _generate(self, dtype: str, prompts: Prompts, output_len: int) -> list[list[int]]:
        input_ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = self._models[dtype].generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                min_new_tokens=output_len,
                max_new_tokens=output_len,
                pad_token_id=0,
            )
        return output[:, input_ids.shape[1] :].tolist()


if __name__ == "__main__":
    serve_side(lambda: TransformersSide(sys.argv[1]))
