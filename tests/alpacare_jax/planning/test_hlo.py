"""Compiled programs as we read them, from hand-made text."""

import pytest

from alpacare_jax.planning import hlo
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "tests/golden/loops.hlo").read_text()
"""Written by hand: 3 times 32 turns, each with a slice, a gather, a copy and an update."""


def trips(op_name: str) -> float | None:
    return 3.0 if op_name.endswith("/accumulate/while") else None


def test_computations_count_as_often_as_they_run():
    program = hlo.parse(TEXT, trips)
    assert program.runs == {"main": 1, "steps": 3, "layers": 96, "sliced": 96, "updated": 96}
    assert program.fused == {"sliced", "updated"}


def test_traffic_counts_slices_not_what_they_are_cut_from():
    layer = (
        (400 + 4 + 400)  # the slice, read and written, and its index
        + (400 + 1600)  # gathered: one part read, all written
        + 1600  # copied into on-chip memory: only the reading counts
        + (400 + 4 + 400)  # put into its place
    )
    assert hlo.hbm_bytes(hlo.parse(TEXT, trips)) == pytest.approx(96 * layer + 3 * 4, rel=0.01)


@pytest.mark.parametrize(
    ("line", "num_bytes"),
    [
        # Into on-chip memory: read once. Between two places in main memory: read and written.
        ("(s8[64]{0:S(1)}, s8[64]{0}, u32[]) copy-start(%a)", 64),
        ("(s8[64]{0}, s8[64]{0}, u32[]) copy-start(%a)", 128),
        ("(s8[4096]{0}, s8[64]{0:S(1)}, s32[]) slice-start(%a), slice={[0:64]}", 64),
    ],
)
def test_traffic_of_copies_in_the_background(line, num_bytes):
    text = (
        "ENTRY %main (a: s8[4096]) -> s8[64] {\n"
        "  %a = s8[4096]{0} parameter(0)\n"
        f"  %start = {line}\n"
        "  ROOT %done = s8[64]{0} copy-done(%start)\n}\n"
    )
    assert hlo.hbm_bytes(hlo.parse(text, trips)) == num_bytes


def test_traffic_of_a_kernel_that_reads_a_part_and_of_a_scope():
    text = (
        "ENTRY %main (a: s8[4096]) -> s8[64] {\n"
        "  %a = s8[4096]{0} parameter(0)\n"
        '  %k = s8[64]{0} custom-call(%a), metadata={op_name="jit(f)/kernel/pallas_call"}\n'
        '  ROOT %b = s8[64]{0} negate(%k), metadata={op_name="jit(f)/neg"}\n}\n'
    )
    program = hlo.parse(text, trips)
    assert hlo.hbm_bytes(program) == 4096 + 64 + 128
    assert hlo.hbm_bytes(program, {"kernel": 1000.0}) == 1000 + 128
    assert hlo.hbm_bytes(program, {"kernel": 1000.0, "kern": 1.0}, "f./kernel") == 1000


def test_a_loop_nobody_knows_is_an_error():
    with pytest.raises(
        ValueError, match=r"unknown trip count of the loop 'jit.step./accumulate/while'"
    ):
        hlo.parse(TEXT, lambda name: None)


def test_other_text_is_an_error():
    with pytest.raises(ValueError, match="not an HLO module"):
        hlo.parse("nothing", trips)


def fused(body: str, signature: str) -> str:
    """A program of one fusion, whose first parameter is 32 times 100 numbers."""
    return (
        f"%inner (q0: f32[32,100], q1: s32[]) -> f32[1,100] {{\n"
        "  %q0 = f32[32,100]{1,0} parameter(0)\n  %q1 = s32[] parameter(1)\n"
        "  ROOT %cut = f32[1,100]{1,0} dynamic-slice(%q0, %q1, %q1), dynamic_slice_sizes={1,100}\n"
        f"}}\n\n%outer (p0: f32[32,100], p1: s32[], p2: f32[2,100]) -> {signature} {{\n"
        "  %p0 = f32[32,100]{1,0} parameter(0)\n  %p1 = s32[] parameter(1)\n"
        f"  %p2 = f32[2,100]{{1,0}} parameter(2)\n{body}}}\n\n"
        f"ENTRY %main (a: f32[32,100], b: s32[], c: f32[2,100]) -> {signature} {{\n"
        "  %a = f32[32,100]{1,0} parameter(0)\n  %b = s32[] parameter(1)\n"
        "  %c = f32[2,100]{1,0} parameter(2)\n"
        f"  ROOT %out = {signature}{{1,0}} fusion(%a, %b, %c), kind=kLoop, calls=%outer\n}}\n"
    )


def test_traffic_of_a_layer_cut_out_by_a_fusion_in_a_fusion():
    """How a TPU multiplies by one layer of stacked weights."""
    body = (
        "  %w = f32[1,100]{1,0} fusion(%p0, %p1), kind=kLoop, calls=%inner\n"
        "  ROOT %x = f32[2,100]{1,0} multiply(%p2, %w)\n"
    )
    text = fused(body, "f32[2,100]")
    assert hlo.hbm_bytes(hlo.parse(text, trips)) == 400 + 4 + 800 + 800
    whole = text.replace("fusion(%p0, %p1), kind=kLoop, calls=%inner", "add(%p0, %p0)")
    assert hlo.hbm_bytes(hlo.parse(whole, trips)) == 32 * 400 + 800 + 800


def test_traffic_of_rows_scattered_into_a_cache():
    body = "  ROOT %put = f32[32,100]{1,0} scatter(%p0, %p1, %p2), to_apply=%add\n"
    assert hlo.hbm_bytes(hlo.parse(fused(body, "f32[32,100]"), trips)) == 4 + 800 + 800
