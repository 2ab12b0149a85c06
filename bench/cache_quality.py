"""`bench cache-quality`: what int8 and fp8 caches cost in quality, beside the unquantized cache.

One text is scored token by token with each cache (every token is read from the cache by the ones
after it), and prompts are answered greedily:

    perplexity    exp of the mean negative log-probability of the text's tokens
    off           mean difference of a token's log-probability from that of the unquantized cache
    agreement     part of the greedy tokens before the first that differs

The engines run one after the other on the same weights; nothing here depends on the clock.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerFast

from bench.model import add_model, find_model
from bench.quality import TEXT
from bench.report import table, write_json
from checkpoints_conv.readers import open_checkpoint
from rtpjax.config import EngineSettings, KvCacheDtype
from rtpjax.engine.engine import LLMEngine
from rtpjax.engine.load import load_engine
from rtpjax.engine.request import SamplingParams
from rtpjax.tokenizer import load_tokenizer

_FORMATS: tuple[KvCacheDtype | None, ...] = (None, "int8", "fp8")
_ROWS = 2  # one bucket of each kind: they compile quickly
_PROMPT_LEN = 48


@dataclass(frozen=True, slots=True)
class Answers:
    """What an engine made of the text: scores `[tokens - 1]`, and greedy tokens by prompt."""

    scores: np.ndarray
    tokens: list[list[int]]


@dataclass(frozen=True, slots=True)
class Quality:
    """A cache's figures; those beside the unquantized one are 0 and 1 for itself."""

    cache: str
    num_tokens: int
    perplexity: float
    mean_off: float
    max_off: float
    agreement: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, has_dummy=False)
    parser.add_argument("--text", type=Path, default=TEXT, help="file with the text to score")
    parser.add_argument("--num-tokens", type=int, default=1024, help="tokens of it, from its start")
    parser.add_argument("--num-prompts", type=int, default=16, help="pieces of it to go on from")
    parser.add_argument("--output-len", type=int, default=64, help="greedy tokens for each")
    parser.add_argument("--json", metavar="FILE", help="write results here")


def run(args: argparse.Namespace) -> int:
    """Returns the exit status."""
    path = find_model(args)
    tokenizer = cast(PreTrainedTokenizerFast, load_tokenizer(path))
    token_ids = tokenizer.encode(args.text.read_text(), add_special_tokens=False)
    text = token_ids[: args.num_tokens]
    starts = random.Random(0).sample(range(len(token_ids) - _PROMPT_LEN), args.num_prompts)
    prompts = [token_ids[at : at + _PROMPT_LEN] for at in sorted(starts)]
    answers = {}
    for name in _FORMATS:
        engine = _load(path, tokenizer, len(text) + args.output_len, name)
        answers[name or "float"] = answer(engine, text, prompts, args.output_len)
        del engine
    figures = [compare(name, found, answers["float"]) for name, found in answers.items()]
    rows = [[v if isinstance(v, str) else f"{v:.5g}" for v in astuple(f)] for f in figures]
    print(table([field.name for field in fields(Quality)], rows))
    write_json(args.json, "cache-quality", {"caches": [asdict(f) for f in figures]})
    return 0


def _load(
    model: str,
    tokenizer: PreTrainedTokenizerFast,
    max_model_len: int,
    kv_cache_dtype: KvCacheDtype | None,
) -> LLMEngine:
    settings = EngineSettings(
        max_model_len=max_model_len,
        max_num_seqs=_ROWS,
        max_num_batched_tokens=16,
        kv_cache_dtype=kv_cache_dtype,
    )
    return load_engine(open_checkpoint(model), tokenizer, (), settings)


def answer(
    engine: LLMEngine, text: list[int], prompts: list[list[int]], output_len: int
) -> Answers:
    """Scores the text and goes on from the prompts."""
    scoring = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, ignore_eos=True)
    [outputs] = engine.generate([text], scoring)
    entries = (outputs[0].prompt_logprobs or ())[1:]
    greedy = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
    results = engine.generate(prompts, greedy)
    tokens = [[t for output in outputs for t in output.token_ids] for outputs in results]
    return Answers(np.array([e.logprob for e in entries if e is not None]), tokens)


def compare(name: str, found: Answers, plain: Answers) -> Quality:
    """The figures of one cache beside the unquantized one's."""
    off = np.abs(found.scores - plain.scores)
    pairs = zip(found.tokens, plain.tokens, strict=True)
    same = [np.cumprod(np.equal(ours, theirs)).sum() for ours, theirs in pairs]
    return Quality(
        cache=name,
        num_tokens=len(found.scores),
        perplexity=float(np.exp(-found.scores.mean())),
        mean_off=float(off.mean()),
        max_off=float(off.max()),
        agreement=float(sum(same) / sum(map(len, plain.tokens))),
    )
