"""Compiled programs as we read them: hand-made text, and one that XLA compiles here."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from alpacare_jax import hlo

MESH = {"data": 2, "fsdp": 4, "tensor": 1}

TEXT = (Path(__file__).parent / "golden" / "loops.hlo").read_text()
"""Written by hand: 3 times 32 turns, each with a slice, a gather, a copy and an update."""


def trips(op_name: str) -> float | None:
    return 3.0 if op_name.endswith("/accumulate/while") else None


def test_computations_count_as_often_as_they_run():
    program = hlo.parse(TEXT, trips)
    assert program.runs == {"main": 1, "steps": 3, "layers": 96, "sliced": 96, "updated": 96}
    assert program.fused == {"sliced", "updated"}


def test_collectives():
    gather, loss, out = hlo.collectives(hlo.parse(TEXT, trips), MESH)
    assert (gather.kind, gather.axes, gather.group, gather.count) == ("all-gather", "fsdp", 4, 96)
    assert gather.num_bytes == 96 * 3 / 4 * 4 * 100 * 4
    assert {(c.kind, c.axes, c.group) for c in (loss, out)} == {
        ("all-reduce", "data", 2),
        ("all-reduce", "data+fsdp", 8),
    }
    assert sorted(c.num_bytes for c in (loss, out)) == [2 * 1 / 2 * 4, 2 * 7 / 8 * 4]


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


def test_a_loop_nobody_knows_is_an_error():
    with pytest.raises(ValueError, match=r"how often the loop 'jit.step./accumulate/while' runs"):
        hlo.parse(TEXT, lambda name: None)


def test_other_text_is_an_error():
    with pytest.raises(ValueError, match="no HLO module"):
        hlo.parse("nothing", trips)


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("replica_groups=[4,2]<=[8]", [0, 1]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [0, 4]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", [0, 1, 2, 3]),
        ("replica_groups={}", list(range(8))),
    ],
)
def test_groups_of_devices(groups, devices):
    line = f"  %x = f32[4]{{0}} all-reduce(%y), {groups}, to_apply=%add"
    assert hlo._devices(hlo._instruction(line), 8) == devices


def test_a_permutation_goes_round_its_ring():
    pairs = "source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}"
    line = f"  %x = f32[4]{{0}} collective-permute(%y), channel_id=1, {pairs}"
    devices = hlo._devices(hlo._instruction(line), 8)
    assert devices == [0, 1, 2, 3]
    assert hlo._axes(devices, MESH) == "fsdp"


def test_a_program_that_xla_compiles():
    """A matrix spread over 4 devices is gathered once in each of 5 turns."""
    mesh = jax.make_mesh((2, 4, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    spread = NamedSharding(mesh, PartitionSpec("fsdp", None))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None))
    whole = NamedSharding(mesh, PartitionSpec())

    def turns(x, w):
        def turn(carry, _):
            x, w = carry
            gathered = jax.lax.with_sharding_constraint(w, whole)
            return (jnp.tanh(x @ gathered), jax.lax.with_sharding_constraint(w * w, spread)), None

        return jax.lax.scan(turn, (x, w), length=5)[0][0]

    compiled = (
        jax.jit(turns, in_shardings=(rows, spread), out_shardings=rows)
        .lower(
            jax.ShapeDtypeStruct((64, 128), np.float32),
            jax.ShapeDtypeStruct((128, 128), np.float32),
        )
        .compile()
    )
    program = hlo.parse(compiled.as_text(), lambda name: None)
    found = {c.kind: c for c in hlo.collectives(program, dict(mesh.shape))}
    gather = found["all-gather"]
    assert (gather.axes, gather.group, gather.count) == ("fsdp", 4, 5)
    assert gather.num_bytes == 5 * 3 / 4 * 128 * 128 * 4
