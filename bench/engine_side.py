"""Our engine as a side of the offline comparison: only this file of bench knows its interface."""

from __future__ import annotations

import json
import sys
from typing import cast

from transformers import PreTrainedTokenizerFast

from bench.side import Prompts, serve_side
from checkpoints_conv.readers import open_checkpoint
from rtpjax.config import DraftConfig, EngineSettings
from rtpjax.engine.load import load_engine
from rtpjax.engine.request import Grammar, RequestOutput, SamplingParams
from rtpjax.errors import EngineError
from rtpjax.tokenizer import load_tokenizer

# JSON that does not end before its length does.
_ITEM = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}}
ENDLESS = Grammar("json_schema", json.dumps({"type": "array", "items": _ITEM, "minItems": 100_000}))


class EngineSide:
    """Generates through the synchronous interface, as a server with default settings would.

    Args:
        model_path: The checkpoint's folder.
        num_constrained: Rows of each batch that follow a grammar.
        quantization: What weights are quantized to.
        drafts: Most tokens that are drafted for a row in a step.
        temperature: Of all rows; each batch draws by the same seeds.
    """

    def __init__(
        self,
        model_path: str,
        *,
        num_constrained: int = 0,
        quantization: str | None = None,
        drafts: int = 0,
        temperature: float = 0.0,
    ):
        self._num_constrained = num_constrained
        self._temperature = temperature
        # No end tokens: the lengths are fixed.
        self._llm = load_engine(
            open_checkpoint(model_path),
            cast(PreTrainedTokenizerFast, load_tokenizer(model_path)),
            (),
            EngineSettings(
                quantization=quantization, drafts=DraftConfig(drafts) if drafts else None
            ),
        )
        self._host_share = 0.0

    def generate(self, prompts: Prompts, output_len: int) -> list[list[int]]:
        timings = self._llm.timings
        host_s, wait_s = timings.host_s, timings.wait_s
        sampling = [
            SamplingParams(
                temperature=self._temperature, max_tokens=output_len, ignore_eos=True, seed=i
            )
            for i in range(len(prompts))
        ]
        num_free = len(prompts) - self._num_constrained
        grammars = [ENDLESS] * self._num_constrained + [None] * num_free
        outputs = self._llm.generate(prompts, sampling, grammars[: len(prompts)])
        host_s, wait_s = timings.host_s - host_s, timings.wait_s - wait_s
        self._host_share = host_s / (host_s + wait_s)
        return [_token_ids(parts) for parts in outputs]

    def describe(self) -> tuple[float | None, str]:
        return self._host_share, ""


def _token_ids(parts: list[RequestOutput]) -> list[int]:
    if parts[-1].finish_reason == "error":
        raise EngineError(f"{parts[-1].request_id}: {parts[-1].error}")
    return [token_id for part in parts for token_id in part.token_ids]


if __name__ == "__main__":
    path, options = sys.argv[1:]
    serve_side(lambda: EngineSide(path, **json.loads(options)))
