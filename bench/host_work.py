"""`bench host`: what a step costs the host, by the number of devices that it runs on.

Each number of devices has a process of its own with so many virtual CPU devices, and an engine with
a small random model split over them. What is measured is the thread that runs the engine, per step:

    --instructions   how many it executes: what no other work on the machine changes. A minute or
                     two for a step of each side (bench/instructions.py)
    (without)        its processor time, in rounds that alternate. Virtual devices share the cores
                     with it, so its wall time would measure them too. They also slow it down,
                     through caches and hyperthreads, the more the more there are. So the thread
                     does a fixed piece of work after each step, the yardstick, which no number of
                     devices changes: what a step costs in yardsticks is what is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.instructions import Counter, ignore_marks, mark
from bench.report import busy_share, table, write_json
from bench.workload import random_token_ids

if TYPE_CHECKING:
    from rtpjax.engine.engine import LLMEngine

_WARM_UP_STEPS = 30  # before instructions are counted: Python and JAX learn what is called often

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
    parser.add_argument(
        "--instructions", type=_at_least_one, metavar="N", help="count those of N steps"
    )
    parser.add_argument("--json", metavar="FILE", help="write results here")


def run(args: argparse.Namespace) -> int:
    """Returns the exit status."""
    return _measure_time(args) if args.instructions is None else _count_instructions(args)


def _count_instructions(args: argparse.Namespace) -> int:
    counts = {}
    for n in args.devices:
        side = _Side(n, args)
        try:
            counts[n] = side.count(args.instructions)
        finally:
            side.close()
    first = median(counts[args.devices[0]])
    rows = [[n, median(c), min(c), max(c), median(c) / first] for n, c in counts.items()]
    header = ["devices", "instructions a step", "least", "most", f"to {args.devices[0]}"]
    print(table(header, rows))
    write_json(args.json, "host", {"instructions": counts})
    return 0


def _measure_time(args: argparse.Namespace) -> int:
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
        steps = [each[n].yardsticks / each[first].yardsticks for each in rounds]
        raw = [each[n].step_s / each[first].step_s for each in rounds]
        own = [each[n] for each in rounds]
        figures = (
            1e3 * median(each.step_s for each in own),
            1e3 * median(each.yardstick_s for each in own),
            median(each.yardsticks for each in own),
        )
        rows.append([n, *figures, median(raw), median(steps), min(steps), max(steps)])
    header = ["devices", "step ms", "yardstick ms", "yardsticks a step"]
    header += [f"time to {first}", f"yardsticks to {first}", "lowest", "highest"]
    print(table(header, rows))
    found = [{n: each._asdict() for n, each in one.items()} for one in rounds]
    write_json(args.json, "host", {"busy_share_before": busy, "rounds": found})
    return 0


class Work(NamedTuple):
    """Seconds of the engine thread's processor time: of a step, and of the yardstick."""

    step_s: float
    yardstick_s: float

    @property
    def yardsticks(self) -> float:
        """Of a step."""
        return self.step_s / self.yardstick_s


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

    def measure(self) -> Work:
        """A round."""
        self._send(f"time {self._steps}")
        return Work(*map(float, self._answer().split()))

    def count(self, num_steps: int) -> list[int]:
        """Instructions of so many steps."""
        self._send(f"count {num_steps}")
        counter = Counter(int(self._answer()))
        self._send("go")
        counts = counter.count(num_steps)
        self._answer()
        return counts

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the process that is measured has ended; its message is above")
        return answer

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


def _yardstick() -> int:
    """Some 0.3 ms of what a scheduler does: small objects, lists and dictionaries."""
    rows = {i: [i, i + 1, (i, i)] for i in range(1000)}
    return sum(row[0] + row[2][1] for row in rows.values() if row[1] in rows)


@contextmanager
def _decoding(engine: LLMEngine, num_rows: int, num_steps: int) -> Iterator[None]:
    """The next num_steps steps are decode steps of so many rows."""
    from rtpjax.engine.request import GenerationRequest, SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=num_steps + 8 + num_rows, ignore_eos=True)
    rng = random.Random(0)
    for i in range(num_rows):
        prompt = tuple(token_id % 2000 for token_id in random_token_ids(rng, 8))
        engine.add(GenerationRequest(str(i), prompt, sampling))
    for _ in range(4 + num_rows):  # the prompts, and the pipeline is full
        engine.step()
    yield
    for i in range(num_rows):
        engine.abort(str(i))
    while engine.has_work:
        engine.step()


def _timed(engine: LLMEngine, num_rows: int, num_steps: int) -> Work:
    """Runs num_steps decode steps, and the yardstick after each."""
    step_s = yardstick_s = 0.0
    with _decoding(engine, num_rows, num_steps):
        for _ in range(num_steps):
            started = time.thread_time()
            engine.step()
            stepped = time.thread_time()
            _yardstick()
            step_s += stepped - started
            yardstick_s += time.thread_time() - stepped
    return Work(step_s / num_steps, yardstick_s / num_steps)


def _counted(engine: LLMEngine, num_rows: int, num_steps: int) -> None:
    """Has the parent count the instructions of num_steps decode steps; others warm up."""
    with _decoding(engine, num_rows, _WARM_UP_STEPS):
        for _ in range(_WARM_UP_STEPS):
            engine.step()
    with _decoding(engine, num_rows, num_steps):
        print(threading.get_native_id(), flush=True)
        sys.stdin.readline()
        mark()
        for _ in range(num_steps):
            engine.step()
            mark()
    print("counted", flush=True)


def _at_least_one(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} steps; at least 1 can be counted")
    return int(text)


def _int_list(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """The measured process: what to do, and for how many steps, comes in on a line."""
    ignore_marks()
    options: dict[str, Any] = json.loads(sys.argv[1])
    engine = _make_engine(options)
    for line in iter(sys.stdin.readline, ""):
        what, num_steps = line.split()
        if what == "count":
            _counted(engine, options["rows"], int(num_steps))
        else:
            print(*_timed(engine, options["rows"], int(num_steps)), flush=True)


if __name__ == "__main__":
    main()
