"""The same model in torch on the same GPU: one CUDA graph of a decode step, and transformers.

The graph is the best that torch does by plain means: q, k and v in one product, gate and up in one,
its own attention, nothing of Python between kernels. Its weights are random too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]
from transformers import AutoConfig, AutoModelForCausalLM

from rtpjax.checkpoint import read_config
from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import CONTEXT, EXTEND, ROWS

_GENERATED = (4, 36)  # tokens of two calls, whose difference is that of decode steps


def run(lab: Lab) -> None:
    config = read_config(lab.model)
    device = "cpu" if lab.is_small else "cuda"
    if not lab.is_small and not torch.cuda.is_available():
        lab.record.failed("peer", f"torch {torch.__version__} finds no GPU: {torch.version.cuda=}")
        return
    with torch.inference_mode():
        model = _Model(config, device)
        context = lab.pick(CONTEXT, 32)
        for rows in lab.pick(ROWS, (1, 2)):
            with lab.record.attempt(f"peer.{rows}"):
                _decode(lab, model, rows, context)
        with lab.record.attempt("peer.extend"):
            tokens = lab.pick(EXTEND, 32)
            caches = model.caches(1, tokens)
            ids = torch.randint(0, model.vocab_size, (1, tokens), device=device)
            positions = torch.arange(tokens, device=device)
            s = seconds_of(lab, partial(model.step, ids, positions, caches), calls=3)
            lab.record.measured("peer.extend", 1e3 * s, "ms", tokens=tokens)
        del model
        with lab.record.attempt("peer.transformers"):
            _transformers(lab, config, device)


def _decode(lab: Lab, model: _Model, rows: int, context: int) -> None:
    """A step of so many rows of one context: captured, and without a graph."""
    caches = model.caches(rows, context)
    ids = torch.zeros(rows, 1, device=model.device, dtype=torch.long)
    positions = torch.tensor([context - 1], device=model.device)
    step = partial(model.step, ids, positions, caches)
    eager = seconds_of(lab, step, calls=lab.pick(5, 1))
    lab.record.measured(f"peer.eager.{rows}", 1e3 * eager, "ms", rows=rows)
    if lab.is_small:
        return
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    s = seconds_of(lab, graph.replay, calls=30)
    lab.record.measured(f"peer.{rows}", 1e3 * s, "ms", rows=rows, context=context)


def seconds_of(lab: Lab, call: Callable[[], Any], *, calls: int) -> float:
    """Of a call, as timing.seconds_each has it."""

    def wait() -> None:
        if not lab.is_small:
            torch.cuda.synchronize()

    best = float("inf")
    for number in range(4):
        wait()
        started = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        if number:
            best = min(best, (time.perf_counter() - started) / calls)
    return best


class _Model:
    """A model of Llama's kind with random weights."""

    def __init__(self, config: dict[str, Any], device: str):
        self.device, self.dtype = device, torch.bfloat16
        D, self.vocab_size = config["hidden_size"], config["vocab_size"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        H = self.head_dim = config.get("head_dim") or D // self.heads
        F = config["intermediate_size"]
        torch.manual_seed(0)
        self.layers = [
            {
                "qkv": self._weight((self.heads + 2 * self.kv_heads) * H, D),
                "o": self._weight(D, self.heads * H),
                "gate_up": self._weight(2 * F, D),
                "down": self._weight(D, F),
                "norms": torch.ones(2, D, device=device, dtype=self.dtype),
            }
            for _ in range(config["num_hidden_layers"])
        ]
        self.embedding, self.head = (
            self._weight(self.vocab_size, D),
            self._weight(self.vocab_size, D),
        )
        self.norm = torch.ones(D, device=device, dtype=self.dtype)
        theta = config.get("rope_theta") or 500_000.0
        halves = torch.arange(0, H, 2, device=device).float()
        self.frequencies = 1.0 / (theta ** (halves / H))

    def _weight(self, *shape: int) -> Any:
        return torch.randn(*shape, device=self.device, dtype=self.dtype) * 0.02

    def caches(self, rows: int, context: int) -> list[tuple[Any, Any]]:
        """Keys and values of all layers."""
        shape = rows, self.kv_heads, context, self.head_dim
        return [(self._weight(*shape), self._weight(*shape)) for _ in self.layers]

    def step(self, ids: Any, positions: Any, caches: list[tuple[Any, Any]]) -> Any:
        """Tokens `[B, T]` at positions `[T]`; the greedy tokens `[B]` that follow."""
        (B, T), N, K, H = ids.shape, self.heads, self.kv_heads, self.head_dim
        x = self.embedding[ids]
        angles = positions.float()[:, None] * self.frequencies
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)

        def turned(x: Any) -> Any:
            a, b = x.chunk(2, -1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

        for layer, (keys, values) in zip(self.layers, caches, strict=True):
            normed = functional.rms_norm(x, x.shape[-1:], layer["norms"][0])
            heads = functional.linear(normed, layer["qkv"]).view(B, T, N + 2 * K, H)
            q, k, v = heads.transpose(1, 2).split((N, K, K), 1)
            q, k = turned(q), turned(k)
            keys.index_copy_(2, positions, k)
            values.index_copy_(2, positions, v)
            k, v = (keys, values) if T == 1 else (k, v)
            mixed = functional.scaled_dot_product_attention(
                q, k, v, is_causal=T > 1, enable_gqa=True
            )
            x = x + functional.linear(mixed.transpose(1, 2).reshape(B, T, N * H), layer["o"])
            normed = functional.rms_norm(x, x.shape[-1:], layer["norms"][1])
            gate, up = functional.linear(normed, layer["gate_up"]).chunk(2, -1)
            x = x + functional.linear(functional.silu(gate) * up, layer["down"])
        last = functional.rms_norm(x[:, -1], x.shape[-1:], self.norm)
        return functional.linear(last, self.head).argmax(-1)


def _transformers(lab: Lab, config: dict[str, Any], device: str) -> None:
    """transformers' generate with a static cache, greedy, not compiled: a row's decode step."""
    named = {key: value for key, value in config.items() if not key.startswith("_")}
    made = AutoConfig.for_model(named.pop("model_type"), **named)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    model.eval()
    prompt = torch.randint(0, config["vocab_size"], (1, lab.pick(512, 8)), device=device)

    def seconds(count: int) -> float:
        started = time.perf_counter()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
            cache_implementation="static",
            disable_compile=True,
            pad_token_id=0,
        )
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    few, many = _GENERATED
    seconds(few)
    s = statistics.median((seconds(many) - seconds(few)) / (many - few) for _ in range(3))
    lab.record.measured("peer.transformers", 1e3 * s, "ms", rows=1)
