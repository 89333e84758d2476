"""Mesh and shardings: what fits, what raises and by which name."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from alpacare_jax.distributed import sharding
from alpacare_jax.distributed.sharding import ShardingConfig
from alpacare_jax.model import params
from alpacare_jax.model.config import VARIANTS
from configs import common

RULES = common.sharding().rules.to_dict()


def config(data=1, fsdp=1, tensor=1, allow_replicated="", **rules) -> ShardingConfig:
    return ShardingConfig(data, fsdp, tensor, RULES | rules, allow_replicated)


def specs(variant: str, mesh, **rules) -> dict[str, P]:
    tree = sharding.param_shardings(VARIANTS[variant], mesh, config(**rules))
    return {path: s.spec for path, s in params.flatten(tree).items()}


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ((1, -1, 1), (1, 8, 1)),
        ((-1, 1, 1), (8, 1, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 2, -1), (1, 2, 4)),
        ((8, -1, 1), (8, 1, 1)),
        ((2, 2, 2), (2, 2, 2)),
    ],
)
def test_minus_one_is_what_is_left(sizes, shape):
    mesh = sharding.make_mesh(config(*sizes))
    assert mesh.devices.shape == shape
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.size == jax.device_count() == 8
    assert len(set(mesh.devices.flat)) == 8
    assert sharding.batch_groups(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize("sizes", [(2, 2, 1), (16, 1, 1), (3, -1, 1), (-1, 16, 1), (1, 1, 1)])
def test_a_mesh_that_does_not_cover_the_devices(sizes):
    with pytest.raises(ValueError, match=r"does not cover 8 devices; set one of sharding\.data"):
        sharding.make_mesh(config(*sizes))


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 8, 1), (-2, 1, 1)])
def test_bad_sizes(sizes):
    with pytest.raises(ValueError, match="give positive sizes, one may be -1"):
        config(*sizes)


def test_a_rule_to_an_unknown_mesh_axis():
    with pytest.raises(ValueError, match=r"sharding\.rules name .*'model'.*; choose from data"):
        config(heads="model")


def test_specs_are_as_expected():
    mesh = sharding.make_mesh(config(2, 2, 2))
    assert specs("tiny", mesh) == {
        "embed_tokens": P("tensor", "fsdp"),
        "layers.input_layernorm": P(None, None),
        "layers.self_attn.q_proj": P(None, "fsdp", "tensor", None),
        "layers.self_attn.k_proj": P(None, "fsdp", "tensor", None),
        "layers.self_attn.v_proj": P(None, "fsdp", "tensor", None),
        "layers.self_attn.o_proj": P(None, "tensor", None, "fsdp"),
        "layers.post_attention_layernorm": P(None, None),
        "layers.mlp.gate_proj": P(None, "fsdp", "tensor"),
        "layers.mlp.up_proj": P(None, "fsdp", "tensor"),
        "layers.mlp.down_proj": P(None, "tensor", "fsdp"),
        "norm": P(None),
        "lm_head": P("tensor", "fsdp"),
    }
    assert sharding.batch_sharding(mesh).spec == P(None, ("data", "fsdp"), None)
    assert sharding.replicated(mesh).spec == P()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_sharded_over_eight_devices(variant):
    shape = VARIANTS[variant]
    mesh = sharding.make_mesh(config(1, -1, 1))
    tree = params.flatten(sharding.param_shardings(shape, mesh, config()))
    for weight in params.weight_specs(shape):
        whole = params.weight_shape(weight, shape)
        part = tree[weight.path].shard_shape(whole)
        if weight.decay:  # matrices
            assert np.prod(part) * 8 == np.prod(whole), weight.path


def test_a_batch_is_sharded_by_rows():
    mesh = sharding.make_mesh(config(2, 2, 2))
    array = jax.device_put(np.arange(3 * 4 * 5).reshape(3, 4, 5), sharding.batch_sharding(mesh))
    parts = {str(shard.index): shard.data.shape for shard in array.addressable_shards}
    assert set(parts.values()) == {(3, 1, 5)}
    assert len(parts) == 4, "rows are replicated over tensor"


def test_flags_are_one_per_device():
    mesh = sharding.make_mesh(config(2, 2, 2))
    flag = sharding.put_flag(True, mesh)
    assert flag.shape == (8,) and flag.dtype == np.float32
    assert [shard.data.tolist() for shard in flag.addressable_shards] == [[1.0]] * 8


def test_put_batch_shards_the_rows():
    mesh = sharding.make_mesh(config(2, 2, 2))
    tokens = np.arange(2 * 8 * 3).reshape(2, 8, 3)
    placed = sharding.put_batch({"tokens": tokens}, mesh)["tokens"]
    assert placed.sharding == sharding.batch_sharding(mesh)
    np.testing.assert_array_equal(placed, tokens)


def test_meshes_are_described_by_axes_of_more_than_one_device():
    assert (
        sharding.describe(sharding.make_mesh(config(1, 4, 2))) == "8 cpu devices (fsdp 4, tensor 2)"
    )
    one = sharding.make_mesh(config(1, 1, 1), jax.devices()[:1])
    assert sharding.describe(one) == "one cpu device"
    described = sharding.describe(sharding.make_mesh(config(2, 8, 1), two_slices()))
    assert described == "16 TPU v5 lite devices (data 2, fsdp 8), 4 processes"


def test_an_axis_without_a_rule():
    mesh = sharding.make_mesh(config(1, 8, 1))
    rules = {axis: rule for axis, rule in RULES.items() if axis != "ffn"}
    lacking = dataclasses.replace(config(), rules=rules)
    with pytest.raises(ValueError, match=r"sharding\.rules lack logical axis 'ffn' of layers\.mlp"):
        sharding.param_shardings(VARIANTS["tiny"], mesh, lacking)


@pytest.mark.parametrize(
    "variant, sizes, message",
    [
        (
            "smollm2-135m",
            (1, 4, 2),
            r"q_proj: axis 'heads' of length 9 .* size 2 of .* 'tensor'",
        ),
        ("tiny", (1, 2, 4), r"k_proj: axis 'kv_heads' of length 2 .* size 4 of .* 'tensor'"),
    ],
)
def test_a_length_that_does_not_divide_is_named(variant, sizes, message):
    mesh = sharding.make_mesh(config(*sizes))
    with pytest.raises(ValueError, match=message):
        specs(variant, mesh)


def test_the_remedy_for_a_length_that_does_not_divide():
    mesh = sharding.make_mesh(config(1, 2, 4))
    got = specs("tiny", mesh, kv_heads="")
    assert got["layers.self_attn.k_proj"] == P(None, "fsdp", None, None)
    assert got["layers.self_attn.q_proj"] == P(None, "fsdp", "tensor", None)


def test_two_axes_of_one_weight_on_one_mesh_axis():
    mesh = sharding.make_mesh(config(1, 8, 1))
    with pytest.raises(ValueError, match=r"embed_tokens: .*'vocab' and 'embed' .*'fsdp'"):
        specs("tiny", mesh, vocab="fsdp")


MATRICES = dict.fromkeys(("embed", "vocab", "heads", "kv_heads", "ffn"), "")


@pytest.mark.parametrize(
    "sizes, rules, message",
    [
        (
            (1, 8, 1),
            {"embed": ""},
            r"sharding\.rules vocab='tensor', embed='' replicate embed_tokens \(131,072,000 "
            r"elements\) 8 times, 131,072,000 elements on each device; map one of its axes to "
            r"'fsdp', or list the weight in sharding\.allow_replicated",
        ),
        ((1, 1, 8), {"vocab": ""}, r"vocab='', embed='fsdp' replicate embed_.* to 'tensor', or"),
        (
            (1, 2, 4),
            {"vocab": "", "embed": ""},
            r"embed_tokens .* 8 times, .* map one of its axes to 'fsdp' or 'tensor'",
        ),
        ((2, 1, 4), {"heads": ""}, r"q_proj \(536,870,912 elements\) 4 times"),
        (
            (1, 4, 2),
            {"embed": ""},
            r"embed_tokens .* 4 times, 65,536,000 elements on each .* its axes to 'fsdp', or",
        ),
        ((1, 4, 2), {"ffn": ""}, r"gate_proj .* 2 times, .* one of its axes to 'tensor'"),
    ],
)
def test_a_large_weight_that_would_have_copies(sizes, rules, message):
    mesh = sharding.make_mesh(config(*sizes))
    with pytest.raises(ValueError, match=message):
        specs("llama-7b", mesh, **rules)


def test_a_large_weight_that_is_meant_to_have_copies():
    mesh = sharding.make_mesh(config(1, 1, 8))
    meant = {"vocab": "", "allow_replicated": "embed_tokens, lm_head"}
    got = specs("llama-7b", mesh, **meant)
    assert got["lm_head"] == P(None, "fsdp"), "an axis of one device"
    with pytest.raises(ValueError, match=r"lm_head \(131,072,000 elements\) 8 times"):
        specs("llama-7b", mesh, **meant | {"allow_replicated": "embed_tokens"})


def test_on_data_alone_weights_are_meant_to_be_whole():
    specs("llama-7b", sharding.make_mesh(config(8, 1, 1)))
    specs("llama-7b", sharding.make_mesh(config(8, 1, 1)), **MATRICES)


def test_vectors_and_the_smallest_models_may_be_whole():
    mesh = sharding.make_mesh(config(1, 8, 1))
    for variant, shape in VARIANTS.items():
        got = specs(variant, mesh)
        assert {got[w.path] for w in params.weight_specs(shape) if not w.decay} <= {
            P(None),
            P(None, None),
        }
    specs("tiny", mesh, **MATRICES)


def test_a_misspelt_weight_that_may_be_whole():
    with pytest.raises(ValueError, match=r"no weight 'lm_hed'; did you mean 'lm_head'\?"):
        config(allow_replicated="embed_tokens,lm_hed")


def test_a_moment_lies_as_its_weight_on_the_axes_it_has():
    mesh = sharding.make_mesh(config(2, 2, 2))
    q = params.flatten(sharding.param_shardings(VARIANTS["tiny"], mesh, config()))
    q = q["layers.self_attn.q_proj"]
    assert sharding.moment_sharding((2, 64, 4, 16), q).spec == q.spec
    assert sharding.moment_sharding((2, 1, 4, 16), q).spec == P(None, None, "tensor", None)
    assert sharding.moment_sharding((2, 64, 1, 1), q).spec == P(None, "fsdp", None, None)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A described v5e of a slice of 4 x 2, as JAX arranges meshes by it."""

    id: int
    slice_index: int
    process_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def two_slices() -> list[Chip]:
    """16 chips of two slices and four hosts, in no order."""
    chips = [Chip(i, i // 8, i // 4, (i % 4, i % 8 // 4, 0)) for i in range(16)]
    return [chips[i] for i in np.random.default_rng(0).permutation(16)]


@pytest.mark.parametrize("sizes", [(2, -1, 1), (2, 4, 2), (4, -1, 1), (-1, 2, 2)])
def test_only_the_axis_data_goes_over_several_slices(sizes):
    mesh = sharding.make_mesh(config(*sizes), two_slices())
    assert sorted(chip.id for chip in mesh.devices.flat) == list(range(16))
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    assert (slices == slices[:, :1, :1]).all(), "fsdp and tensor stay inside a slice"
    half = len(slices) // 2
    assert set(slices[:half].flat) == {0} and set(slices[half:].flat) == {1}
    # Within a slice each is a neighbour of the next, as on one slice alone.
    places = np.array([chip.coords for chip in mesh.devices.flat])
    assert (abs(np.diff(places[:8], axis=0)).sum(axis=1) == 1).all()


@pytest.mark.parametrize("sizes", [(1, -1, 1), (1, 8, 2)])
def test_several_slices_share_the_axis_data(sizes):
    with pytest.raises(ValueError, match=r"data is 1; over 2 slices it must be a multiple of 2"):
        sharding.make_mesh(config(*sizes), two_slices())
