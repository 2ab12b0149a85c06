"""`bench quality`: what quantized weights cost, beside the same model in float32.

    perplexity       of a fixed text, quality_text.md (an early state of this project's own
                     documentation, which no model has read), in windows of 512 tokens
    same next token  share of the text's tokens after which both find the same one most likely
    same answer      both go on greedily from pieces of the text: share of tokens before the first
                     that differs

No sampling, no server: the model's own step, a window in a step and then a token in a step.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bench.model import add_model, find_model
from bench.report import table, write_json
from checkpoints_conv.readers import open_checkpoint
from rtpjax.checkpoint import load_params
from rtpjax.engine import kv_cache
from rtpjax.models import Caches, Precision, StepInputs, build
from rtpjax.models.quantization import METHODS
from rtpjax.quantized_checkpoint import in_formats
from rtpjax.sharding import make_mesh
from rtpjax.tokenizer import load_tokenizer

TEXT = Path(__file__).parent / "quality_text.md"
REFERENCE = "fp32"
PAGE_SIZE = 32
WINDOW = 512
NUM_ANSWERS, PROMPT_LEN = 8, 64


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a model made of the text.

    Attributes:
        loss: Mean negative log-likelihood of a token.
        best: The likeliest next token after each token of the windows.
        answers: Greedy tokens `[NUM_ANSWERS, answer_len]`.
        weights_bytes: Size of the parameters as they are kept.
    """

    loss: float
    best: np.ndarray
    answers: np.ndarray
    weights_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, has_dummy=False)
    parser.add_argument(
        "--formats", type=lambda text: text.split(","), default="bf16,int8,int4,fp8"
    )
    parser.add_argument("--windows", type=int, default=4, help="of 512 tokens")
    parser.add_argument("--answer-len", type=int, default=64)
    parser.add_argument("--json", metavar="FILE", help="write results here")


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 1 if a format is not known."""
    unknown = [name for name in args.formats if name not in (REFERENCE, "bf16", *METHODS)]
    if unknown:
        print(f"unknown formats {unknown}; known are bf16, {', '.join(METHODS)}")
        return 1
    path = find_model(args)
    tokens = np.asarray(load_tokenizer(path).encode(TEXT.read_text()), np.int32)
    windows = tokens[: len(tokens) // WINDOW * WINDOW].reshape(-1, WINDOW)[: args.windows]
    outcomes = {}
    for name in (REFERENCE, *args.formats):
        outcomes[name] = measure(path, name, windows, args.answer_len)
        print(f"{name}: perplexity {np.exp(outcomes[name].loss):.4f}", flush=True)
    rows = {name: compared(outcome, outcomes[REFERENCE]) for name, outcome in outcomes.items()}
    header = ["weights", "MB", "perplexity", "to fp32", "same next token", "same answer"]
    print(table(header, [[name, *row.values()] for name, row in rows.items()]))
    write_json(args.json, "quality", {"tokens": int(windows.size), "results": rows})
    return 0


def compared(outcome: Outcome, reference: Outcome) -> dict[str, float]:
    """The figures of one row of the table."""
    same = outcome.answers == reference.answers
    first = np.where(same.all(axis=1), same.shape[1], (~same).argmax(axis=1))
    return {
        "weights_mb": outcome.weights_bytes / 1e6,
        "perplexity": float(np.exp(outcome.loss)),
        "perplexity_ratio": float(np.exp(outcome.loss - reference.loss)),
        "same_next_token": float((outcome.best == reference.best).mean()),
        "same_answer": float(first.mean() / same.shape[1]),
    }


def measure(path: str, name: str, windows: np.ndarray, answer_len: int) -> Outcome:
    """Runs a model over windows `[windows, WINDOW]`, and lets it go on."""
    act_type = "FP32" if name == REFERENCE else "BF16"
    method = name if name in METHODS else None
    platform = jax.default_backend()
    precision = Precision.of(act_type, platform)
    config, specs, checkpoint = in_formats(open_checkpoint(path), method, precision, platform)
    params = load_params(checkpoint, specs, make_mesh(1))
    model = _Paged(build(config, precision, abstract=True), tuple(params.values()), precision)
    results = [model.score(window) for window in windows]
    prompts = windows.reshape(-1, PROMPT_LEN)[:NUM_ANSWERS]
    return Outcome(
        loss=float(np.concatenate([losses for losses, _ in results]).mean()),
        best=np.stack([best for _, best in results]),
        answers=model.answer(prompts, answer_len),
        weights_bytes=sum(value.nbytes for value in params.values()),
    )


class _Paged:
    """A model with a cache for NUM_ANSWERS rows, and its two programs."""

    def __init__(self, model: Any, params: tuple[jax.Array, ...], precision: Precision):
        self._params = params
        self._cache_dtype = precision.cache
        self._specs = model.cache_specs()
        self._num_groups = len(kv_cache.windows_of(self._specs))
        graph, state = nnx.split(model)
        tree = jax.tree.structure(state)

        @partial(jax.jit, donate_argnames="caches")
        def step(
            params: tuple[jax.Array, ...],
            token_ids: jax.Array,
            inputs: StepInputs,
            caches: Caches,
        ) -> tuple[jax.Array, jax.Array, Caches]:
            module: Any = nnx.merge(graph, jax.tree.unflatten(tree, params))
            hidden, caches = module(token_ids, inputs, caches)
            logits = module.logits(hidden)
            following = jnp.append(token_ids[1:], 0)
            scores = jnp.take_along_axis(jax.nn.log_softmax(logits), following[:, None], axis=1)
            return -scores[:, 0], logits.argmax(axis=1), caches

        self._step: Callable[..., Any] = step

    def score(self, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses of all tokens but the first, and the likeliest token after each."""
        lens = np.zeros(NUM_ANSWERS, np.int32)
        lens[0] = len(window)
        losses, best, _ = self._run(window, lens, lens, self._caches())
        return np.asarray(losses)[:-1], np.asarray(best)

    def answer(self, prompts: np.ndarray, answer_len: int) -> np.ndarray:
        """Greedy continuations `[NUM_ANSWERS, answer_len]`."""
        new = np.full(NUM_ANSWERS, PROMPT_LEN, np.int32)
        _, best, caches = self._run(prompts.reshape(-1), new, new, self._caches())
        tokens = [np.asarray(best)[PROMPT_LEN - 1 :: PROMPT_LEN]]
        for i in range(1, answer_len):
            ones = np.ones(NUM_ANSWERS, np.int32)
            _, best, caches = self._run(tokens[-1], ones, new + i, caches)
            tokens.append(np.asarray(best))
        return np.stack(tokens, axis=1)

    def _run(
        self, token_ids: np.ndarray, new: np.ndarray, lens: np.ndarray, caches: Any
    ) -> tuple[jax.Array, jax.Array, Any]:
        """A step: rows of so many new tokens, whose contexts are then so long."""
        rows = np.repeat(np.arange(NUM_ANSWERS), new)
        starts = np.concatenate([[0], np.cumsum(new)])
        positions = (lens - new)[rows] + np.arange(len(rows)) - starts[rows]
        width = WINDOW // PAGE_SIZE
        pages = 1 + np.arange(NUM_ANSWERS * width).reshape(NUM_ANSWERS, width)
        slots = pages[rows, positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
        ints = partial(jnp.asarray, dtype=jnp.int32)
        is_decode = bool((new == 1).all())
        inputs = StepInputs(
            positions=ints(positions),
            slots=ints([slots] * self._num_groups),
            page_tables=ints([pages] * self._num_groups),
            query_start=ints(starts),
            context_lens=ints(lens),
            kind="decode" if is_decode else "extend",
        )
        return self._step(self._params, ints(token_ids), inputs, caches)

    def _caches(self) -> Caches:
        num_pages = [1 + NUM_ANSWERS * WINDOW // PAGE_SIZE] * self._num_groups
        return kv_cache.allocate(self._specs, num_pages, PAGE_SIZE, self._cache_dtype, make_mesh(1))
