"""What devices send to each other, from hand-made programs and one that XLA compiles here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from alpacare_jax.planning import collectives, hlo
from tests.alpacare_jax.planning.test_hlo import TEXT, trips

MESH = {"data": 2, "fsdp": 4, "tensor": 1}


def test_collectives():
    gather, loss, out = collectives.find(hlo.parse(TEXT, trips), MESH)
    assert (gather.kind, gather.axes, gather.group, gather.count) == ("all-gather", "fsdp", 4, 96)
    assert gather.num_bytes == 96 * 3 / 4 * 4 * 100 * 4
    assert {(c.kind, c.axes, c.group) for c in (loss, out)} == {
        ("all-reduce", "data", 2),
        ("all-reduce", "data+fsdp", 8),
    }
    assert sorted(c.num_bytes for c in (loss, out)) == [2 * 1 / 2 * 4, 2 * 7 / 8 * 4]


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
    assert collectives._devices(hlo._instruction(line), 8) == devices


def test_a_permutation_goes_round_its_ring():
    pairs = "source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}"
    line = f"  %x = f32[4]{{0}} collective-permute(%y), channel_id=1, {pairs}"
    devices = collectives._devices(hlo._instruction(line), 8)
    assert devices == [0, 1, 2, 3]
    assert collectives._axes(devices, MESH) == "fsdp"


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
    found = {c.kind: c for c in collectives.find(program, dict(mesh.shape))}
    gather = found["all-gather"]
    assert (gather.axes, gather.group, gather.count) == ("fsdp", 4, 5)
    assert gather.num_bytes == 5 * 3 / 4 * 128 * 128 * 4


def one_slice(kind: str) -> hlo.Program:
    """One of two slices of four: a sum scattered inside it, then a collective between the two."""
    return hlo.parse(
        "%scatter (s0: f32[8,100]) -> f32[2,100] {\n"
        "  %s0 = f32[8,100]{1,0} parameter(0)\n"
        "  %sum = f32[8,100]{1,0} all-reduce(%s0), channel_id=1, replica_groups={{0,1,2,3}}\n"
        "  %i = u32[] partition-id()\n"
        "  ROOT %cut = f32[2,100]{1,0} dynamic-slice(%sum, %i, %i), dynamic_slice_sizes={2,100}\n"
        "}\n\nENTRY %main (a: f32[8,100]) -> f32[2,100] {\n"
        "  %a = f32[8,100]{1,0} parameter(0)\n"
        "  %part = f32[2,100]{1,0} fusion(%a), kind=kCustom, calls=%scatter\n"
        "  %whole = f32[8,100]{1,0} all-reduce(%a), channel_id=1, replica_groups={}\n"
        "  %after = token[] after-all()\n"
        "  %send = (f32[2,100]{1,0}, u32[], token[]) send(%part, %after), channel_id=1, "
        'is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",'
        f'_xla_megascale_transfer_type="{kind}"}}\n'
        "  %recv = (f32[2,100]{1,0}, u32[], token[]) recv(%after), channel_id=2, "
        f'frontend_attributes={{_xla_megascale_transfer_type="{kind}"}}\n'
        "  ROOT %done = (f32[2,100]{1,0}, token[]) recv-done(%recv), channel_id=2\n}\n",
        trips,
    )


@pytest.mark.parametrize(
    ("name", "kind", "share"),
    [
        ("ALL_REDUCE", "all-reduce", 2 * 1 / 2),
        ("REDUCE_SCATTER", "reduce-scatter", 1 / 2),
        ("ALL_TO_ALL", "all-to-all", 1 / 2),
        ("ALL_GATHER", "all-gather", 1),
        ("ONE_TO_ONE", "collective-permute", 1),
    ],
)
def test_what_goes_between_slices_is_counted_apart(name, kind, share):
    """A v5e's compiler writes it so: a `send` to the host, its kind among the attributes."""
    found = collectives.find(one_slice(name), MESH, slices=2)
    (between,) = [c for c in found if c.between_slices]
    assert (between.kind, between.axes, between.group, between.count) == (kind, "data", 2, 1)
    assert between.num_bytes == share * 2 * 100 * 4
    inside = {c.kind: c for c in found if not c.between_slices}
    assert {c.axes for c in inside.values()} == {"fsdp"}, "the program is of one slice"
    assert inside["reduce-scatter"].num_bytes == 3 / 4 * 3200, "only slices of the sum are used"
    assert inside["all-reduce"].num_bytes == 2 * 3 / 4 * 3200


def test_an_unknown_kind_between_slices_is_an_error():
    with pytest.raises(ValueError, match="unknown transfer between slices: 'NEW'"):
        collectives.find(one_slice("NEW"), MESH, slices=2)
