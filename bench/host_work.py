"""`bench host`: what a step costs the host, by the number of devices that it runs on.

Each number of devices has a process of its own with so many virtual CPU devices, and an engine with
a small random model split over them. Rounds alternate. What is measured is the processor time of
the thread that runs the engine, per step: virtual devices share the cores with it, so its wall time
would measure them too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.report import busy_share, table, write_json
from bench.workload import random_token_ids

if TYPE_CHECKING:
    from rtpjax.engine.engine import LLMEngine

# Every device has a head: what is split into 8 parts takes part in 8 parts.
_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 2048,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", type=_int_list, default="1,8", help="TP_SIZE of each side")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8, help="requests that decode together")
    parser.add_argument("--steps", type=int, default=100, help="decode steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write results here")


def run(args: argparse.Namespace) -> int:
    """Returns the exit status."""
    busy = busy_share()
    sides = {n: _Side(n, args) for n in args.devices}
    try:
        for side in sides.values():
            side.measure()  # the first round warms up
        rounds = [{n: side.measure() for n, side in sides.items()} for _ in range(args.rounds)]
    finally:
        for side in sides.values():
            side.close()
    first = args.devices[0]
    rows: list[list[object]] = []
    for n in args.devices:
        ratios = [each[n] / each[first] for each in rounds]
        spent = median(each[n] for each in rounds)
        rows.append([n, 1e3 * spent, median(ratios), min(ratios), max(ratios)])
    print(table(["devices", "host ms a step", f"ratio to {first}", "lowest", "highest"], rows))
    write_json(args.json, "host", {"busy_share_before": busy, "rounds": rounds})
    return 0


class _Side:
    """The parent's end of a process with so many devices."""

    def __init__(self, num_devices: int, args: argparse.Namespace):
        options = {"devices": num_devices, "layers": args.layers, "rows": args.rows}
        environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices)}
        self._steps = args.steps
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.host_work", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def measure(self) -> float:
        """Seconds of the engine thread's processor time in a step."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{self._steps}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the process that is measured has ended; its message is above")
        return float(answer)

    def close(self) -> None:
        """Ends the process: it leaves when its input ends."""
        self._process.communicate(timeout=60)


def _make_engine(options: Mapping[str, int]) -> LLMEngine:
    """An engine with random weights, split over all devices."""
    import jax
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    from rtpjax import config, sharding
    from rtpjax.engine.engine import LLMEngine
    from rtpjax.engine.runner import Runner
    from rtpjax.models import ModelConfig, abstract_state, init_random

    num_devices = options["devices"]
    model = ModelConfig.from_hf(_MODEL | {"num_hidden_layers": options["layers"]})
    settings = config.EngineSettings(
        act_type="FP32",
        max_num_seqs=options["rows"],
        max_num_batched_tokens=max(32, options["rows"]),
        kv_cache_bytes=256 * config.MIB,
        tp_size=num_devices,
    )
    random_model = init_random(model, config.precision_of(settings, "cpu"))
    resolved = config.resolve(settings, model, random_model.cache_specs(), platform="cpu")
    mesh = sharding.make_mesh(num_devices, model=model)
    leaves = jax.tree.leaves(random_model)
    specs = abstract_state(model, resolved.precision)
    params = {
        name: jax.device_put(leaf, sharding.named_sharding(mesh, spec.axes, spec.shape))
        for (name, spec), leaf in zip(specs.items(), leaves, strict=True)
    }
    runner = Runner(resolved, model, params, mesh, model.vocab_size)
    runner.compile()
    backend = Tokenizer(models.WordLevel({f" {i}": i for i in range(model.vocab_size)}))
    backend.decoder = decoders.Fuse()
    return LLMEngine(runner, resolved, PreTrainedTokenizerFast(tokenizer_object=backend), ())


def _decode(engine: LLMEngine, num_rows: int, num_steps: int) -> float:
    """Runs num_steps decode steps; the thread's processor time in one."""
    from rtpjax.engine.request import GenerationRequest, SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=num_steps + 8 + num_rows, ignore_eos=True)
    rng = random.Random(0)
    for i in range(num_rows):
        prompt = tuple(token_id % 2000 for token_id in random_token_ids(rng, 8))
        engine.add(GenerationRequest(str(i), prompt, sampling))
    for _ in range(4 + num_rows):  # the prompts, and the pipeline is full
        engine.step()
    started = time.thread_time()
    for _ in range(num_steps):
        engine.step()
    spent = time.thread_time() - started
    for i in range(num_rows):
        engine.abort(str(i))
    while engine.has_work:
        engine.step()
    return spent / num_steps


def _int_list(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """The measured process: a number of steps comes in on a line, the time goes out."""
    options: dict[str, Any] = json.loads(sys.argv[1])
    engine = _make_engine(options)
    for line in sys.stdin:
        print(_decode(engine, options["rows"], int(line)), flush=True)


if __name__ == "__main__":
    main()
