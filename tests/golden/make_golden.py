"""Computes the golden logits with transformers (torch, eager attention, float32).

python -m tests.golden.make_golden [CASE ...]
"""

from __future__ import annotations

import copy
import inspect
import sys

import numpy as np

from rtpjax.models import architectures
from rtpjax.renamed_tensors import model_name
from tests.golden import cases


def reference_model(case_name: str):
    """The transformers model of a case, with the case's weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options = copy.deepcopy(cases.CASES[case_name].config)  # transformers writes into it
    if options.get("head_dim", 0) is None:  # a null is ours to read; Qwen2Config wants it absent
        del options["head_dim"]
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    tied = model.config.tie_word_embeddings
    with torch.no_grad():
        for name, tensor in named_tensors(model).items():
            if not (tied and name == "lm_head.weight"):
                tensor.copy_(torch.from_numpy(cases.weight(name, tuple(tensor.shape))))
    return model.eval()


def named_tensors(model) -> dict:
    """A transformers model's tensors by our names; experts' gate and up are views of one tensor."""
    tensors = {}
    family = architectures()[type(model).__name__]
    patterns = family.stored_names
    for stored, tensor in model.state_dict().items():
        name = model_name(stored, patterns)
        if family.has_interleaved_experts and ".experts." in name:
            layer, _, which = name.rpartition(".")
            end = "bias" if which.endswith("_bias") else "weight"
            of_out = tensor if end == "bias" else tensor.transpose(1, 2)
            if which.startswith("down_proj"):
                tensors[f"{layer}.down_proj.{end}"] = of_out
            else:
                tensors[f"{layer}.gate_proj.{end}"] = of_out[:, ::2]
                tensors[f"{layer}.up_proj.{end}"] = of_out[:, 1::2]
        elif name.endswith("experts.gate_up_proj"):
            layer, size = name.removesuffix("gate_up_proj"), tensor.shape[1] // 2
            tensors[f"{layer}gate_proj.weight"] = tensor[:, :size]
            tensors[f"{layer}up_proj.weight"] = tensor[:, size:]
        elif name.endswith("experts.down_proj"):
            tensors[f"{name}.weight"] = tensor
        elif name.endswith("mlp.gate_up_proj.weight"):
            layer, size = name.removesuffix("gate_up_proj.weight"), tensor.shape[0] // 2
            tensors[f"{layer}gate_proj.weight"] = tensor[:size]
            tensors[f"{layer}up_proj.weight"] = tensor[size:]
        elif name.endswith("qkv_proj.weight"):
            layer, heads = name.removesuffix("qkv_proj.weight"), model.config.num_attention_heads
            kv_heads = model.config.num_key_value_heads
            size = tensor.shape[0] // (heads + 2 * kv_heads)
            ends = size * heads, size * (heads + kv_heads)
            tensors[f"{layer}q_proj.weight"] = tensor[: ends[0]]
            tensors[f"{layer}k_proj.weight"] = tensor[ends[0] : ends[1]]
            tensors[f"{layer}v_proj.weight"] = tensor[ends[1] :]
        else:
            tensors[name] = tensor
    return tensors


def reference_logits(case_name: str) -> np.ndarray:
    """float32 `[PROMPT_LEN, V]`."""
    import torch
    from transformers import DynamicCache

    model = reference_model(case_name)
    ids = torch.from_numpy(cases.prompt(case_name).astype(np.int64))[None]
    with torch.no_grad():
        if not cases.CASES[case_name].by_token:
            return model(ids, use_cache=False).logits[0].numpy()
        # transformers 5.24 calls it cache; it is filled in place.
        takes = inspect.signature(model.forward).parameters
        cache = {"cache" if "cache" in takes else "past_key_values": DynamicCache()}
        steps = (model(ids[:, at : at + 1], **cache) for at in range(ids.shape[1]))
        return np.stack([step.logits[0, 0].numpy() for step in steps])


def main() -> None:
    """Writes the named cases' files, or all."""
    for name in sys.argv[1:] or cases.CASES:
        logits = reference_logits(name)
        path = cases.FOLDER / f"{name}.npz"
        np.savez_compressed(path, token_ids=cases.prompt(name), logits=logits)
        print(f"{name:26} {path.stat().st_size:6} bytes, largest logit {abs(logits).max():.3f}")


if __name__ == "__main__":
    main()
