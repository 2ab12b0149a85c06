"""What the host does, against a sequence read by hand."""

from __future__ import annotations

import pytest

from rtpjax.plan import hlo, thunks

# Cut from what jaxlib 0.10.2 writes: a conditional whose second branch has a loop, of which XLA
# puts into graphs what it can; then a loop whose count is known.
SEQUENCE = """\
000: kCommandBuffer [source       | next=108 (1)]
    001: kCustomKernel [source | sink] wrapped_slice grid: [1, 1, 1] threads: [8, 1, 1]
    108: kConditional  [source | sink]
      false_branch:
        No thunks.
108: kConditional   [prev=000 (1) | next=109 (1)]
  false_branch:
    018: kCustomKernel [source       | next=019 (1)] input_reduce_fusion_5 grid: [1002, 1, 1]
    019: kCopy         [prev=018 (1) | sink        ] kCopy
  true_branch:
    000: kCommandBuffer [source       | next=047 (1)]
        041: kCustomKernel [source | sink] loop_and_fusion_1 grid: [513, 1, 1]
        046: kCopy         [source | sink] kCopy
    047: kWhile         [prev=000 (1) | next=051 (1)]
condition:
            048: kCustomKernel [source | sink] wrapped_compare grid: [1, 1, 1]
body:
            049: kCustomKernel [source | sink] loop_and_fusion grid: [1, 1, 1]
118: kWhile         [prev=108 (1) | next=128 (1)]
condition:
    119: kCustomKernel [source | sink] wrapped_compare_1 grid: [1, 1, 1]
body:
    000: kCommandBuffer [source | sink]
        120: kCustomKernel [source | sink] loop_fusion grid: [1, 1, 1]
130: kCustomKernel [prev=118 (1) | sink] input_concatenate_fusion grid: [1, 1, 1]
"""
NAMES = {47: "while.6", 108: "cond.9", 118: "while.3"}
MODULE = hlo.parse("""\
HloModule jit_choose, is_scheduled=true

ENTRY %main.1 (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %while.6 = f32[8]{0} while(%x), condition=%c.1, body=%b.1
  ROOT %while.3 = f32[8]{0} while(%while.6), condition=%c.2, body=%b.2, backend_config={"known_trip_count":{"n":"20"}}
}
""")  # noqa: E501


def test_the_host_waits_for_what_is_in_no_graph_and_of_unknown_count():
    work = thunks.host_work(SEQUENCE, NAMES, MODULE)
    assert work.waits == ("cond.9", "while.6")
    assert work.num_graphs == 3
    assert work.num_launches == 2 + 2 + 1 + 1


def test_without_names_every_loop_may_wait():
    assert thunks.host_work(SEQUENCE, {}, MODULE).waits == ("thunk 108", "thunk 47", "thunk 118")


def test_a_dump_of_another_kind_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="wrote 0 thunk sequences and 0 lists"):
        thunks.read_dump(tmp_path, MODULE)
