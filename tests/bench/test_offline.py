import argparse
import random
import sys

import pytest

from bench.offline import ENGINE, Comparison, _prompt, measure, report
from bench.side import Generated, SideError, SideProcess

# A child that answers with a known speed; the first argument is seconds per batch.
CHILD = """
import sys, time
from bench.side import serve_side

class Side:
    def generate(self, prompts, output_len):
        print("noise on standard output")
        time.sleep(float(sys.argv[1]))
        return [[0] * (output_len - int(sys.argv[2]))] * len(prompts)
    def describe(self):
        return 0.25, "note"

serve_side(Side)
"""


def start(name: str, seconds: float, num_missing: int = 0) -> SideProcess:
    return SideProcess(name, [sys.executable, "-c", CHILD, str(seconds), str(num_missing)])


def test_sides_take_turns_and_pair_up():
    sides = [start(ENGINE, 0.05), start("other", 0.15)]
    args = argparse.Namespace(seed=0, rounds=2, input_len=3, output_len=4, repeat=1)
    try:
        comparison = measure(sides, 2, args)
    finally:
        for side in sides:
            side.close()
    assert [len(runs) for runs in comparison.rounds.values()] == [2, 2]
    assert comparison.rounds[ENGINE][0].num_output_tokens == 8
    assert comparison.ratios("other") == pytest.approx([3.0, 3.0], rel=0.4)
    assert comparison.rounds[ENGINE][0].host_share == 0.25


def test_ratio_is_taken_round_by_round():
    runs = {
        ENGINE: [Generated(1.0, 10, 0.1), Generated(2.0, 10, 0.3), Generated(4.0, 10, 0.2)],
        "other": [Generated(2.0, 10, note="bfloat16"), Generated(6.0, 10), Generated(4.0, 10)],
    }
    comparison = Comparison(1, runs)
    assert comparison.rates(ENGINE) == [10.0, 5.0, 2.5]
    assert comparison.ratios("other") == pytest.approx([2.0, 3.0, 1.0])
    row = report([comparison]).splitlines()[-1].split()
    assert row == ["1", "5.00", "0.200", "2.50", "bfloat16", "2.00", "1.00", "3.00"]


def test_prompts_that_repeat_have_the_length_that_was_asked_for():
    prompt = _prompt(random.Random(0), 10, 4)
    assert prompt == (prompt[:3] * 4)[:10] and len(set(prompt)) == 3
    assert len(set(_prompt(random.Random(0), 10, 1))) == 10


def test_a_side_that_does_less_work_is_refused():
    side = start("short", 0.0, num_missing=1)
    with pytest.raises(SideError, match="generated 3 tokens, expected 4"):
        side.generate([[1, 2]], 4)
    side.close()


def test_a_side_that_ends_is_noticed():
    side = SideProcess("gone", [sys.executable, "-c", "input()"])
    with pytest.raises(SideError, match="gone process has ended"):
        side.generate([[1]], 1)
    side.close()


@pytest.mark.slow
@pytest.mark.reference
def test_transformers_side(tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    side = SideProcess(
        "transformers", [sys.executable, "-m", "bench.transformers_side", str(tmp_path)]
    )
    generated = side.generate([[1, 2, 3], [4, 5, 6]], 7)
    side.close()
    assert generated.num_output_tokens == 14 and generated.note in ("bfloat16", "float32")
