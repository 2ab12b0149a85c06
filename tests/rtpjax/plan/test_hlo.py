"""The reader of compiled programs, against programs counted by hand."""

from __future__ import annotations

import pytest

from rtpjax.plan import hlo

# Shapes are chosen so that a number tells where it comes from.
HEADER = (
    "HloModule jit_step, is_scheduled=true, input_output_alias={ {1}: (2, {}, may-alias), "
    "{2}: (3, {}, must-alias) }, entry_computation_layout={(f32[2]{0})->f32[2]{0}}\n\n"
)


def module(text: str, header: str = HEADER) -> hlo.Module:
    return hlo.parse(header + text.strip() + "\n")


def moved(found: list[hlo.Kernel]) -> dict[str, tuple[int, int, int]]:
    return {k.name: (k.runs, k.read, k.written) for k in found}


PRODUCT = """
%dot_fusion (p0: bf16[8,64], p1: bf16[64,32]) -> f32[8,32] {
  %p0 = bf16[8,64]{1,0} parameter(0)
  %p1 = bf16[64,32]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,32]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main.1 (x: bf16[8,64], w: bf16[64,32]) -> f32[8,32] {
  %x = bf16[8,64]{1,0} parameter(0), metadata={op_name="x"}
  %w = bf16[64,32]{1,0} parameter(1), metadata={op_name="w"}
  %bitcast.1 = bf16[64,32]{1,0} bitcast(%w)
  ROOT %gemm_fusion.2 = f32[8,32]{1,0} fusion(%x, %bitcast.1), kind=kCustom, calls=%dot_fusion
}
"""


def test_a_product_reads_its_operands_and_writes_its_result():
    found = hlo.kernels(module(PRODUCT))
    assert moved(found) == {"gemm_fusion.2": (1, 8 * 64 * 2 + 64 * 32 * 2, 8 * 32 * 4)}
    assert hlo.total_bytes(found) == 1024 + 4096 + 1024
    assert hlo.products(module(PRODUCT)) == ["gemm_fusion.2"]


def test_aliases_come_from_the_header():
    assert module(PRODUCT).aliased == {2, 3}
    assert module(PRODUCT, "HloModule a, entry_computation_layout={()->f32[]}\n\n").aliased == set()


GATHER = """
%fused_gather (p0: bf16[1000,16], p1: s32[4]) -> f32[4,16] {
  %p0 = bf16[1000,16]{1,0} parameter(0)
  %p1 = s32[4]{0} parameter(1)
  %bitcast.1 = s32[4,1]{1,0} bitcast(%p1)
  %gather.1 = bf16[4,16]{1,0} gather(%p0, %bitcast.1), offset_dims={1}, slice_sizes={1,16}
  ROOT %convert.1 = f32[4,16]{1,0} convert(%gather.1)
}

%fused_scatter (p0: bf16[1000,16], p1: s32[4], p2: f32[4,16]) -> bf16[1000,16] {
  %p0 = bf16[1000,16]{1,0} parameter(0)
  %p1 = s32[4]{0} parameter(1)
  %p2 = f32[4,16]{1,0} parameter(2)
  %bitcast.2 = s32[4,1]{1,0} bitcast(%p1)
  %convert.2 = bf16[4,16]{1,0} convert(%p2)
  ROOT %scatter.1 = bf16[1000,16]{1,0} scatter(%p0, %bitcast.2, %convert.2), to_apply=%last
}

ENTRY %main.2 (pages: bf16[1000,16], slots: s32[4]) -> bf16[1000,16] {
  %pages = bf16[1000,16]{1,0} parameter(0)
  %slots = s32[4]{0} parameter(1)
  %gather_fusion = f32[4,16]{1,0} fusion(%pages, %slots), kind=kLoop, calls=%fused_gather
  ROOT %out = bf16[1000,16]{1,0} fusion(%pages, %slots, %gather_fusion), kind=kInput, calls=%fused_scatter
}
"""  # noqa: E501


def test_gather_and_scatter_touch_the_rows_they_address():
    assert moved(hlo.kernels(module(GATHER))) == {
        "gather_fusion": (1, 4 * 16 * 2 + 4 * 4, 4 * 16 * 4),
        "out": (1, 4 * 4 + 4 * 16 * 4, 4 * 16 * 2),
    }


LOOP = """
%cond (s: (s32[], f32[100])) -> pred[] {
  %s = (s32[], f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %less = pred[] compare(%i, %i), direction=LT
}

%body (s: (s32[], f32[100])) -> (s32[], f32[100]) {
  %s.1 = (s32[], f32[100]{0}) parameter(0)
  %x = f32[100]{0} get-tuple-element(%s.1), index=1
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %twice = f32[100]{0} add(%x, %x)
  ROOT %t = (s32[], f32[100]{0}) tuple(%i.1, %twice)
}

ENTRY %main.3 (x: f32[100]) -> f32[100] {
  %x.1 = f32[100]{0} parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[], /*index=1*/f32[100]{0}) tuple(%zero, %x.1)
  %while.1 = (s32[], f32[100]{0}) while(%init), condition=%cond, body=%body
  ROOT %y = f32[100]{0} get-tuple-element(%while.1), index=1
}
"""


POINTWISE = """
%fused_gather (p0: f32[1000,16], p1: s32[4], p2: s32[1000]) -> f32[4,16] {
  %p0 = f32[1000,16]{1,0} parameter(0)
  %p1 = s32[4]{0} parameter(1)
  %p2 = s32[1000]{0} parameter(2)
  %wide.1 = s32[1000,16]{1,0} broadcast(%p2), dimensions={0}
  %zero.1 = s32[] constant(0)
  %zeros.1 = s32[1000,16]{1,0} broadcast(%zero.1), dimensions={}
  %allowed.1 = pred[1000,16]{1,0} compare(%wide.1, %zeros.1), direction=GT
  %negate.1 = f32[1000,16]{1,0} negate(%p0)
  %select.1 = f32[1000,16]{1,0} select(%allowed.1, %p0, %negate.1)
  %bitcast.1 = s32[4,1]{1,0} bitcast(%p1)
  ROOT %gather.1 = f32[4,16]{1,0} gather(%select.1, %bitcast.1), offset_dims={1}, slice_sizes={1,16}
}

%fused_negate (p0: f32[1000,16]) -> f32[1000,16] {
  %p0 = f32[1000,16]{1,0} parameter(0)
  ROOT %negate.2 = f32[1000,16]{1,0} negate(%p0)
}

ENTRY %main.9 (x: f32[1000,16], rows: s32[4], mask: s32[1000]) -> f32[4,16] {
  %x = f32[1000,16]{1,0} parameter(0)
  %rows = s32[4]{0} parameter(1)
  %mask = s32[1000]{0} parameter(2)
  %whole = f32[1000,16]{1,0} fusion(%x), kind=kLoop, calls=%fused_negate
  ROOT %some = f32[4,16]{1,0} fusion(%whole, %rows, %mask), kind=kLoop, calls=%fused_gather
}
"""


def test_what_is_computed_of_a_value_is_computed_where_it_is_asked_for():
    """A gather of 4 rows out of 1000, of values that two paths lead to."""
    assert moved(hlo.kernels(module(POINTWISE))) == {
        "whole": (1, 64_000, 64_000),
        "some": (1, 2 * 256 + 16 + 16, 256),
    }


def test_a_loop_counts_as_often_as_it_runs():
    found = hlo.kernels(module(LOOP), trips=(5,))
    assert moved(found) == {"twice": (5, 800, 400), "less": (6, 8, 1)}
    assert hlo.num_launches(found) == 11
    known = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert moved(hlo.kernels(module(known)))["twice"] == (3, 800, 400)


def test_a_loop_of_unknown_count_must_be_said():
    with pytest.raises(ValueError, match=r"while\.1: say how often"):
        hlo.kernels(module(LOOP))


BRANCHES = """
%little (a: f32[10]) -> f32[10] {
  %a = f32[10]{0} parameter(0)
  ROOT %once = f32[10]{0} copy(%a)
}

%much (b: f32[10]) -> f32[10] {
  %b = f32[10]{0} parameter(0)
  %sum = f32[10]{0} add(%b, %b)
  ROOT %again = f32[10]{0} add(%sum, %b)
}

ENTRY %main.6 (p: pred[], x: f32[10]) -> f32[10] {
  %p = pred[] parameter(0)
  %x = f32[10]{0} parameter(1)
  ROOT %either = f32[10]{0} conditional(%p, %x, %x), true_computation=%much, false_computation=%little
}
"""  # noqa: E501


def test_of_a_conditional_one_branch_runs():
    assert moved(hlo.kernels(module(BRANCHES))) == {"sum": (1, 80, 40), "again": (1, 80, 40)}
    assert moved(hlo.kernels(module(BRANCHES), shortest=True)) == {"once": (1, 40, 40)}


MESH = """
ENTRY %main.4 (w: bf16[1024,512], x: f32[8]) -> bf16[2048,512] {
  %w = bf16[1024,512]{1,0} parameter(0)
  %x = f32[8]{0} parameter(1)
  %ar = f32[8]{0} all-reduce-start(%x), channel_id=1, to_apply=%add
  %ar.1 = f32[8]{0} all-reduce-done(%ar)
  %view = bf16[1024,512]{1,0} bitcast(%w)
  %ag = (bf16[1024,512]{1,0}, bf16[2048,512]{1,0}) all-gather-start(%view), dimensions={0}
  %copy.1 = bf16[1024,512]{0,1} copy(%view)
  ROOT %ag.1 = bf16[2048,512]{1,0} all-gather-done(%ag)
}
"""


def test_collectives_and_what_is_moved_though_it_should_not_be():
    mesh = module(MESH)
    assert hlo.collectives(hlo.kernels(mesh)) == {"all-reduce": 1, "all-gather": 1}
    assert hlo.gathered_parameters(mesh) == [0]
    assert hlo.copied_parameters(mesh) == [0]
    small = module(MESH.replace("1024,512", "16,512"))
    assert hlo.gathered_parameters(small) == hlo.copied_parameters(small) == []


KERNEL = """
ENTRY %main.5 (q: bf16[8,128], k: bf16[900,128]) -> bf16[8,128] {
  %q = bf16[8,128]{1,0} parameter(0)
  %k = bf16[900,128]{1,0} parameter(1)
  ROOT %attend = bf16[8,128]{1,0} custom-call(%q, %k), custom_call_target="__gpu$xla.gpu.triton"
}
"""


def test_our_kernels_read_the_live_part_of_the_cache():
    pool = hlo.Pool(size=900 * 128 * 2, live=5000, open=300)
    assert moved(hlo.kernels(module(KERNEL), pools=[pool])) == {"attend": (1, 2048 + 5000, 2048)}
    assert moved(hlo.kernels(module(KERNEL)))["attend"] == (1, 2048 + 230400, 2048)


# 1031 pages of 64 tokens, 8 heads of 128; 64 new tokens. The text in `ir` is not an alias.
WRITE = """
ENTRY %main.7 (k: s8[1031,64,8,128], s: f32[1031,8], x: bf16[64,8,128], at: s32[64]) -> (s8[1031,64,8,128], f32[1031,8]) {
  %k = s8[1031,64,8,128]{3,2,1,0} parameter(0)
  %s = f32[1031,8]{1,0} parameter(1)
  %x = bf16[64,8,128]{2,1,0} parameter(2)
  %at = s32[64]{0} parameter(3)
  ROOT %write = (s8[1031,64,8,128]{3,2,1,0}, f32[1031,8]{1,0}) custom-call(%x, %k, %s, %at), custom_call_target="__gpu$xla.gpu.triton", output_to_operand_aliasing={{0}: (1, {}), {1}: (2, {})}, api_version=API_VERSION_TYPED_FFI, backend_config={ir = "{0}: (0, {}), x=", name = "quantized_write"}
}
"""  # noqa: E501


def test_a_kernel_that_updates_the_cache_in_place_rewrites_the_pages_of_new_tokens():
    pages = hlo.Pool(size=1031 * 64 * 8 * 128, live=10**7, open=64 * 64 * 8 * 128)
    scales = hlo.Pool(size=1031 * 8 * 4, live=10**4, open=64 * 8 * 4)
    new = 64 * 8 * 128 * 2 + 64 * 4
    assert moved(hlo.kernels(module(WRITE), pools=[pages, scales])) == {
        "write": (1, new + 64 * 64 * 8 * 128 + 64 * 8 * 4, 64 * 64 * 8 * 128 + 64 * 8 * 4)
    }
    # One that makes a new array of that size writes all of it, and reads what is live.
    copied = WRITE.replace("output_to_operand_aliasing", "something_else")
    assert moved(hlo.kernels(module(copied), pools=[pages, scales])) == {
        "write": (1, new + 10**7 + 10**4, pages.size + scales.size)
    }
    assert hlo.products(module(WRITE)) == []


def test_library_calls_are_named():
    text = KERNEL.replace("__gpu$xla.gpu.triton", "__cublas$gemm")
    assert hlo.library_calls(module(text)) == ["__cublas$gemm"]
    assert hlo.library_calls(module(KERNEL)) == []
