"""What is read of the assembler's output and of a dump."""

from __future__ import annotations

from rtpjax.plan import ptx

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'dot_1' for 'sm_90a'
ptxas info    : Function properties for dot_1
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
ptxas info    : Compiling entry function 'add' for 'sm_90a'
ptxas info    : Function properties for add
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 13 registers, used 0 barriers
"""


def test_registers_and_spills_by_kernel():
    assert ptx.parse_ptxas(LOG) == {"dot_1": (168, 20), "add": (13, 0)}


def test_a_dump_without_ptxas(tmp_path):
    (tmp_path / "a.1.ptx").write_text(".visible .entry dot_1(\nmma.sync.aligned.m16n8k16 {};\n")
    (tmp_path / "a.2.ptx").write_text(".visible .entry dot_2(\nfma.rn.f32 %f1;\n")
    (tmp_path / "a.thunk_sequence.txt").write_text(
        "001: kCustomKernel [x | next=002 (1)] dot_1 grid: [4, 1, 1] threads: [64, 1, 1]  "
        "shared_memory: 768 bytes\n"
    )
    found = ptx.read_dump(tmp_path, "sm_90a", None)
    assert found == [
        ptx.Resources("dot_1", None, None, 768, "mma.sync"),
        ptx.Resources("dot_2", None, None, 0, None),
    ]
    assert ptx.without_tensor_core(["dot.1", "dot.2"], found) == ["dot_2"]
    assert ptx.without_tensor_core(["dot.1"], []) == ["no PTX was written"]
