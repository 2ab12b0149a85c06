from __future__ import annotations

import numpy as np
import pytest

from rtpjax.engine.batch import Bucket, Layout
from rtpjax.lab import kernels_of_trace
from rtpjax.lab.steps import PAGE_SIZE, packed
from rtpjax.plan import hlo


@pytest.mark.parametrize(
    ("bucket", "queries"),
    [
        (Bucket("decode", 3, 3), [(99, 1), (0, 1), (64, 1)]),
        (Bucket("extend", 70, 2), [(0, 70)]),
    ],
)
def test_a_packed_step_writes_each_token_to_a_slot_of_its_own_row(bucket, queries):
    layout = Layout(bucket, table_width=2)
    parts = layout.split(packed(layout, queries))
    at = 0
    for row, (start, count) in enumerate(queries):
        for position in range(start, start + count):
            _, where, slot, owner = parts.tokens[:, at]
            page = parts.page_tables[0, row][position // PAGE_SIZE]
            assert (where, owner) == (position, row)
            assert slot == page * PAGE_SIZE + position % PAGE_SIZE
            at += 1
        assert parts.context_lens[row] == start + count
        assert parts.query_start[row + 1] == at
    assert at == bucket.num_tokens == parts.query_start[-1]
    slots = parts.tokens[2]
    assert len(set(slots)) == len(slots) and np.all(slots >= PAGE_SIZE)  # page 0 is padding's
    pages = parts.page_tables[parts.page_tables > 0]
    assert len(set(pages)) == len(pages)


# ruff: noqa: E501
MODULE = """HloModule jit_forward, entry_computation_layout={()->()}

ENTRY %main.1 (a: bf16[8,4], b: bf16[8,4], c: bf16[4,8], d: s32[2], n: bf16[4]) -> bf16[2,8] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = bf16[8,4]{1,0} parameter(1)
  %c = bf16[4,8]{1,0} parameter(2)
  %d = s32[2]{0} parameter(3)
  %n = bf16[4]{0} parameter(4)
  %seen = bf16[8,4]{1,0} bitcast(%b)
  %pallas_call.1 = bf16[2,8]{1,0} custom-call(%d, %a, %seen, %n), custom_call_target="x", metadata={op_name="a" id=1}, backend_config={name = "row_matmul", ir = "two"}
  %pallas_call.2 = bf16[2,4]{1,0} custom-call(%pallas_call.1, %c), custom_call_target="x", backend_config={name = "row_matmul", ir = "one"}
  %pallas_call.3 = bf16[2,8]{1,0} custom-call(%d, %a, %seen, %n), custom_call_target="x", metadata={op_name="b" id=2}, backend_config={name = "row_matmul", ir = "two"}
  %loop_fusion.4 = bf16[2,4]{1,0} fusion(%c), kind=kLoop, calls=%f
  ROOT %other.3 = bf16[2,8]{1,0} fusion(%pallas_call.3), kind=kLoop, calls=%f
}
"""
NAMES = [
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "vector",
    "model.layers.0.post_attention_layernorm.weight",
]


def test_a_kernel_is_of_the_part_whose_weights_it_reads():
    found = kernels_of_trace.parts(hlo.parse(MODULE), NAMES)
    assert found == {"row_matmul": "gate_up", "row_matmul__1": "down", "loop_fusion_4": "down"}


def test_times_are_added_up_by_part():
    seen = [
        ("row_matmul_0", "row_matmul.1", 10.0),
        ("row_matmul_1", "command_buffer_1", 14.0),
        ("paged_decode_7", "command_buffer_1", 30.0),
        ("loop_add_fusion_3", None, 1.0),
    ]
    found = kernels_of_trace.times(iter(seen), {"row_matmul_1": "gate_up"})
    assert [(t.part, t.calls, t.us) for t in found] == [
        ("paged_decode", 1, 30.0),
        ("gate_up", 2, 24.0),
        ("loop_add_fusion", 1, 1.0),
    ]
