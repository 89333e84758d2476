"""The table of weights: its sizes are the published ones, and all that follows from it agrees."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpacare_jax.model import params
from alpacare_jax.model.config import VARIANTS, LlamaConfig

pytestmark = pytest.mark.usefixtures("quickly_compiled")

COUNTS = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3.2-1b": 1_235_814_400,
    "smollm2-135m": 134_515_008,
    # Embeddings 2 * 512 * 64; 2 layers of q, o 64 * 64, k, v 64 * 32, MLP 3 * 64 * 128 and two
    # norms of 64; one norm of 64.
    "tiny": 2 * 512 * 64 + 2 * (2 * 4096 + 2 * 2048 + 3 * 8192 + 2 * 64) + 64,
}
# No two letters have one length, so a swapped pair of axes cannot fit.
CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=24,
    intermediate_size=28,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
    attention_bias=True,
    mlp_bias=True,
)
every_weight = pytest.mark.parametrize("weight", params.WEIGHTS, ids=lambda w: w.path)


def axes_of(dims: str) -> list[str]:
    """What the letters of the legend are called in the sharding rules."""
    names = {"V": "vocab", "D": "embed", "F": "ffn", "L": "layers"}
    names |= {"N": "heads", "K": "kv_heads", "H": "head_dim"}
    return [names[letter] for letter in dims]


def test_every_variant_has_a_count():
    assert COUNTS.keys() == VARIANTS.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_are_the_published_ones(variant):
    config = VARIANTS[variant]
    made = jax.eval_shape(lambda: params.init(config, jax.random.key(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made)) == COUNTS[variant]
    assert params.count(config) == COUNTS[variant]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("config", [*VARIANTS.values(), CONFIG], ids=[*VARIANTS, "all features"])
def test_abstract_is_what_init_would_make(config, dtype):
    made = jax.eval_shape(lambda: params.init(config, jax.random.key(0), dtype))
    assert made == params.abstract(config, dtype)


@pytest.mark.slow
def test_init_draws_normal_matrices_and_leaves_norms_and_biases_plain():
    config = dataclasses.replace(VARIANTS["tiny"], attention_bias=True, initializer_range=0.05)
    init = jax.jit(lambda key: params.flatten(params.init(config, key)))
    made, again, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
    assert made.keys() == {w.path for w in params.weight_specs(config)}
    for path, array in made.items():
        if path.endswith("norm"):
            assert (array == 1).all(), path
        elif path.endswith("_bias"):
            assert (array == 0).all(), path
        else:
            assert abs(np.std(array) - 0.05) < 0.002, path
            assert abs(np.mean(array)) < 0.002, path
            assert (array == again[path]).all(), path
            assert (array != other[path]).mean() > 0.99, path
    starts = {np.asarray(array).ravel()[:8].tobytes() for p, array in made.items() if "proj" in p}
    assert len(starts) == 7, "each matrix has its own random numbers"


@every_weight
def test_row_is_consistent(weight):
    axes = weight.axes.split()
    assert len(axes) == len(weight.dims)
    # Vectors of the model's width are called "norm", so that rules can leave them whole.
    expected = axes_of(weight.dims)
    if weight.layer_dims == "D":
        expected[-1] = "norm"
    assert axes == expected
    assert sorted(weight.hf_dims.replace(" ", "")) == sorted(weight.layer_dims)
    assert weight.stacked == ("{}" in weight.hf_key) == weight.path.startswith("layers.")
    assert weight.init in ("normal", "ones", "zeros")
    assert not weight.only_if or isinstance(getattr(CONFIG, weight.only_if), bool)
    assert weight.decay == (len(weight.hf_dims.split()) == 2) == (weight.init == "normal")


def test_paths_and_keys_are_unique():
    assert len({w.path for w in params.WEIGHTS}) == len(params.WEIGHTS)
    assert len({w.hf_key for w in params.WEIGHTS}) == len(params.WEIGHTS)


@pytest.mark.parametrize(
    ("change", "absent"),
    [
        ({"tie_word_embeddings": True}, {"lm_head"}),
        ({"mlp_bias": False}, {f"layers.mlp.{n}_bias" for n in ("gate", "up", "down")}),
        ({"attention_bias": False}, {f"layers.self_attn.{n}_bias" for n in "qkvo"}),
    ],
)
def test_flags_leave_weights_out(change, absent):
    everything = {w.path for w in params.WEIGHTS}
    assert {w.path for w in params.weight_specs(CONFIG)} == everything
    config = dataclasses.replace(CONFIG, **change)
    assert {w.path for w in params.weight_specs(config)} == everything - absent
    assert params.flatten(params.abstract(config)).keys() == everything - absent


def test_decay_mask_spares_norms_and_biases():
    mask = params.flatten(params.decay_mask(CONFIG))
    decayed = {path for path, value in mask.items() if value}
    assert mask.keys() == {w.path for w in params.WEIGHTS}
    assert decayed == {
        "embed_tokens",
        "lm_head",
        *(f"layers.self_attn.{n}_proj" for n in "qkvo"),
        *(f"layers.mlp.{n}_proj" for n in ("gate", "up", "down")),
    }
    assert all(isinstance(value, bool) for value in mask.values())


@every_weight
def test_layouts_are_inverse(weight):
    shape = params.hf_shape(weight, CONFIG)
    hf = np.arange(math.prod(shape)).reshape(shape)
    ours = params.from_hf_layout(weight, hf, CONFIG)
    assert ours.shape == params.weight_shape(weight, CONFIG)[weight.stacked :]
    assert np.shares_memory(ours, hf)
    np.testing.assert_array_equal(params.to_hf_layout(weight, ours, CONFIG), hf)


def test_layouts_are_pytorchs():
    """torch's Linear holds [out, in] and heads lie one after the other in rows (o: columns)."""
    rows = {w.path.split(".")[-1]: w for w in params.WEIGHTS}
    rng = np.random.default_rng(0)
    x_D, o_NH = rng.standard_normal(24), rng.standard_normal((4, 10))
    q = rng.standard_normal((40, 24))
    q_DNH = params.from_hf_layout(rows["q_proj"], q, CONFIG)
    np.testing.assert_allclose(np.einsum("D,DNH->NH", x_D, q_DNH).ravel(), q @ x_D)
    k = rng.standard_normal((20, 24))
    k_DKH = params.from_hf_layout(rows["k_proj"], k, CONFIG)
    np.testing.assert_allclose(np.einsum("D,DKH->KH", x_D, k_DKH).ravel(), k @ x_D)
    o = rng.standard_normal((24, 40))
    o_NHD = params.from_hf_layout(rows["o_proj"], o, CONFIG)
    np.testing.assert_allclose(np.einsum("NH,NHD->D", o_NH, o_NHD), o @ o_NH.ravel())
    up = rng.standard_normal((28, 24))
    np.testing.assert_allclose(x_D @ params.from_hf_layout(rows["up_proj"], up, CONFIG), up @ x_D)


@pytest.mark.parametrize("variant", ["all features", *VARIANTS])
def test_keys_and_shapes_are_transformers(variant):
    torch = pytest.importorskip("torch", reason="transformers' model needs it")
    transformers = pytest.importorskip("transformers", reason="its keys are the reference")
    config = VARIANTS.get(variant, CONFIG)
    # Two layers name every key; CONFIG's head_dim is not hidden_size / heads.
    config = dataclasses.replace(config, num_hidden_layers=2)
    hf = {k: v for k, v in config.to_hf().items() if k not in ("model_type", "architectures")}
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf))
    theirs = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        assert theirs.pop("lm_head.weight") == theirs["model.embed_tokens.weight"]
    ours = {
        weight.hf_key.format(layer): params.hf_shape(weight, config)
        for weight in params.weight_specs(config)
        for layer in (range(2) if weight.stacked else [None])
    }
    assert ours == theirs


def test_rows_and_columns_of_a_layers_matrix_are_hugging_faces():
    axes = params.matrix_axes(CONFIG)
    assert axes["layers.self_attn.q_proj"] == ((2, 3), (1,)), "LDNH of [N*H, D]"
    assert axes["layers.self_attn.o_proj"] == ((3,), (1, 2)), "LNHD of [D, N*H]"
    assert axes["layers.mlp.gate_proj"] == ((2,), (1,))
    assert axes["embed_tokens"] == ((0,), (1,))
    assert axes["layers.self_attn.q_bias"] == ((1, 2), ())
    assert axes["norm"] == ((0,), ())
    for weight in params.weight_specs(CONFIG):
        rows, columns = axes[weight.path]
        first = 1 if weight.stacked else 0
        assert sorted(rows + columns) == list(range(first, len(weight.dims))), weight.path
