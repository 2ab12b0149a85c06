"""What is read of the assembler's output and of a dump."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import paged_decode
from pallas_kernels.paged_tiles import Operands, Scores
from pallas_kernels.registry import tracing_for
from rtpjax import gpus
from rtpjax.plan import ptx, topology

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


THUNKS = (
    "001: kCustomKernel [x | next=002 (1)] dot_1 grid: [4, 1, 1] threads: [64, 1, 1]  "
    "shared_memory: 768 bytes\n"
)
# Loops of row_matmul and paged_decode as XLA 0.10 to 0.12 made them for an H100, other instructions
# left out; the names say what has to be found.
LOOPS = {
    "three stages of x and w": (
        3,
        """
        cp.async.commit_group; cp.async.commit_group;
        @%p1 bra $L__BB0_4;
    $L__BB0_2:
        cp.async.wait_group 2;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
        cp.async.commit_group;
        @%p2 bra $L__BB0_2;
    $L__BB0_4:
        cp.async.wait_group 0;
        ret;
        """,
    ),
    "keys and values of two tiles": (
        2,
        """
    $L__BB0_3:
        cp.async.wait_group \t2;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
        cp.async.commit_group;
        cp.async.commit_group;
        @%p68 bra \t$L__BB0_3;
        bra.uni $L__BB0_4;
    $L__BB0_4:
        """,
    ),
    "keys and values behind a page id of the same step": (
        1,
        """
    $L__BB0_3:
        cp.async.wait_group 0;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
        cp.async.commit_group;
        cp.async.commit_group;
        @%p41 bra $L__BB0_3;
        """,
    ),
    "a pipeline whose last wait is for everything": (
        1,
        """
    $L__BB0_3:
        cp.async.wait_group 4;
        cp.async.commit_group;
        cp.async.commit_group;
        cp.async.wait_all;
        @%p1 bra $L__BB0_3;
        """,
    ),
    "products without copies": (1, "$L__1:\n wgmma.mma_async.sync\n @%p1 bra $L__1;\n"),
    "the least of q, k and v": (
        1,
        """
    $L__1:
        cp.async.wait_group 6;
        cp.async.commit_group;
        @%p1 bra $L__1;
    $L__2:
        cp.async.wait_group 0;
        cp.async.commit_group;
        @%p1 bra $L__2;
        """,
    ),
    "an inner loop that waits for a barrier, beside products": (
        3,
        """
    $L__1:
    $L__2:
        mbarrier.try_wait.parity.shared.b64
        @!%p1 bra $L__2;
        cp.async.wait_group 4;
        tcgen05.mma.cta_group::1.kind::f16
        cp.async.commit_group;
        cp.async.commit_group;
        @%p2 bra.uni $L__1;
        """,
    ),
    "no loop of interest": (None, "$L__1:\n add.f32 %f1;\n @%p1 bra $L__1;\n bra $L__2;\n$L__2:\n"),
}


@pytest.mark.parametrize(("buffers", "body"), LOOPS.values(), ids=LOOPS)
def test_tiles_in_shared_memory_at_once(buffers, body):
    assert ptx.buffers_of(body) == buffers


def test_the_least_buffers_of_kernels_of_one_name():
    def kernel(name, buffers):
        return ptx.Resources(name, None, None, 0, None, buffers)

    kernels = [
        kernel("row_matmul", 3),
        kernel("row_matmul__12", 2),
        kernel("paged_decode_merge", None),
        kernel("paged_decode_3", 2),
    ]
    assert ptx.buffers_in_flight(kernels) == {"row_matmul": 2, "paged_decode": 2}


def test_a_dump_without_ptxas(tmp_path):
    (tmp_path / "a.1.ptx").write_text(
        ".visible .entry dot_1(\nmma.sync.aligned.m16n8k16 {};\n"
        ".visible .entry dot_2(\nfma.rn.f32 %f1;\n"
    )
    (tmp_path / "a.2.ptx").write_text("// a module whose kernels are all in other files\n")
    (tmp_path / "a.thunk_sequence.txt").write_text(THUNKS)
    found = ptx.read_dump(tmp_path, "sm_90a", None)
    assert found == [
        ptx.Resources("dot_1", None, None, 768, "mma.sync"),
        ptx.Resources("dot_2", None, None, 0, None),
    ]
    assert ptx.without_tensor_core(["dot.1", "dot.2"], found) == ["dot_2"]


def test_a_kernel_without_ptx_is_an_error(tmp_path):
    """Registers and spills of a step are then unknown, and nobody would hear of it."""
    with pytest.raises(RuntimeError, match="No PTX was written for any kernel"):
        ptx.read_dump(tmp_path, "sm_90a", None)
    (tmp_path / "a.1.ptx").write_text(".visible .entry other(\nret;\n")
    (tmp_path / "a.thunk_sequence.txt").write_text(THUNKS)
    with pytest.raises(RuntimeError, match=r"No PTX was written for dot_1: .*dump_options"):
        ptx.read_dump(tmp_path, "sm_90a", None)


@pytest.mark.skipif(
    not topology.compiler_is_installed(), reason="the GPU compiler is not installed"
)
@pytest.mark.parametrize(("num_stages", "buffers"), [(2, 1), (3, 2), (4, 3)])
def test_buffers_of_a_compiled_kernel(num_stages, buffers, tmp_path):
    """Decode attention whose tiles are asked for by num_stages; none of it runs."""
    gpu = gpus.load("h100")
    where = NamedSharding(topology.make_mesh(gpu, 1), PartitionSpec())

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    pages = array(jnp.bfloat16, 65, 64, 8, 128)
    ints = array(jnp.int32, 8, 8), array(jnp.int32, 9), array(jnp.int32, 8)
    operands = Operands(array(jnp.bfloat16, 8, 32, 128), pages, pages, *ints, None, None, None)
    tiling = paged_decode.Tiling(1, 64, num_stages=num_stages)
    scores = Scores(0.1, None, None)
    with tracing_for(gpu.target):
        run = jax.jit(lambda o: paged_decode.paged_decode(o, scores, tiling=tiling))
        run.lower(operands).compile(ptx.dump_options(tmp_path))
    kernels = ptx.read_dump(tmp_path, gpu.ptx_target, None)
    assert ptx.buffers_in_flight(kernels) == {"paged_decode": buffers}
