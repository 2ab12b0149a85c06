"""RTP-LLM's `debug_info`: what the model saw, how it sampled, and what it said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rtpjax.engine.request import SamplingParams
from server.prompt import EncodedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class DebugInfo:
    """What is known before the answer begins."""

    tokenizer: PreTrainedTokenizerFast
    prompt: EncodedPrompt
    sampling: SamplingParams
    max_model_len: int

    def as_json(self, outputs: Sequence[Sequence[int]] | None = None) -> dict[str, Any]:
        """The object; `outputs` are the choices' token ids, once there are some."""
        info = {
            "input_prompt": self.prompt.text,
            "input_ids": list(self.prompt.token_ids),
            "tokenizer_info": f"{type(self.tokenizer).__name__}, {len(self.tokenizer)} tokens",
            "max_seq_len": self.max_model_len,
            "eos_token_id": self.tokenizer.eos_token_id,
            "stop_word_ids_list": [[token_id] for token_id in self.sampling.stop_token_ids],
            "stop_words_list": list(self.sampling.stop),
            "renderer_info": {"name": "chat template"},
            "generate_config": asdict(self.sampling),
        }
        if outputs is not None:
            decode = self.tokenizer.backend_tokenizer.decode
            info["output_ids"] = [list(token_ids) for token_ids in outputs]
            info["raw_output"] = [
                decode(list(token_ids), skip_special_tokens=False) for token_ids in outputs
            ]
        return info
