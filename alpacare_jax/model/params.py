"""Every weight of LLaMA, declared once.

Initialisation, sharding, both directions of conversion and the weight-decay mask follow from the
table `WEIGHTS`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params


@dataclasses.dataclass(frozen=True)
class WeightSpec:
    """One row of `WEIGHTS`; dims are letters of the legend in `llama.py`."""

    path: str  # dotted path in the parameter tree
    dims: str  # our layout, one letter an axis; a leading L means stacked over layers
    axes: str  # logical axis of each dim, for the sharding rules
    hf_key: str  # Hugging Face's name; {} is the layer
    hf_dims: str  # Hugging Face's layout of one layer: "NH D" is [N*H, D]
    init: str  # "normal" with initializer_range, "ones" or "zeros"
    decay: bool  # weight decay applies
    only_if: str = ""  # LlamaConfig flag that the weight exists under; "" is always

    @property
    def stacked(self) -> bool:
        return self.dims.startswith("L")

    @property
    def layer_dims(self) -> str:
        return self.dims.removeprefix("L")


def _linear(name: str, dims: str, axes: str, hf_name: str, hf_dims: str) -> WeightSpec:
    return WeightSpec(
        f"layers.{name}",
        f"L{dims}",
        f"layers {axes}",
        f"model.layers.{{}}.{hf_name}.weight",
        hf_dims,
        "normal",
        decay=True,
    )


def _bias(name: str, dims: str, axes: str, hf_name: str, only_if: str) -> WeightSpec:
    return WeightSpec(
        f"layers.{name}",
        f"L{dims}",
        f"layers {axes}",
        f"model.layers.{{}}.{hf_name}.bias",
        dims,
        "zeros",
        decay=False,
        only_if=only_if,
    )


def _norm(path: str, dims: str, axes: str, hf_key: str) -> WeightSpec:
    return WeightSpec(path, dims, axes, hf_key, "D", "ones", decay=False)


# fmt: off
WEIGHTS: tuple[WeightSpec, ...] = (
    WeightSpec("embed_tokens", "VD", "vocab embed", "model.embed_tokens.weight", "V D",
           "normal", decay=True),
    _norm("layers.input_layernorm", "LD", "layers norm", "model.layers.{}.input_layernorm.weight"),
    _linear("self_attn.q_proj", "DNH", "embed heads head_dim", "self_attn.q_proj", "NH D"),
    _linear("self_attn.k_proj", "DKH", "embed kv_heads head_dim", "self_attn.k_proj", "KH D"),
    _linear("self_attn.v_proj", "DKH", "embed kv_heads head_dim", "self_attn.v_proj", "KH D"),
    _linear("self_attn.o_proj", "NHD", "heads head_dim embed", "self_attn.o_proj", "D NH"),
    _bias("self_attn.q_bias", "NH", "heads head_dim", "self_attn.q_proj", "attention_bias"),
    _bias("self_attn.k_bias", "KH", "kv_heads head_dim", "self_attn.k_proj", "attention_bias"),
    _bias("self_attn.v_bias", "KH", "kv_heads head_dim", "self_attn.v_proj", "attention_bias"),
    _bias("self_attn.o_bias", "D", "norm", "self_attn.o_proj", "attention_bias"),
    _norm("layers.post_attention_layernorm", "LD", "layers norm",
          "model.layers.{}.post_attention_layernorm.weight"),
    _linear("mlp.gate_proj", "DF", "embed ffn", "mlp.gate_proj", "F D"),
    _linear("mlp.up_proj", "DF", "embed ffn", "mlp.up_proj", "F D"),
    _linear("mlp.down_proj", "FD", "ffn embed", "mlp.down_proj", "D F"),
    _bias("mlp.gate_bias", "F", "ffn", "mlp.gate_proj", "mlp_bias"),
    _bias("mlp.up_bias", "F", "ffn", "mlp.up_proj", "mlp_bias"),
    _bias("mlp.down_bias", "D", "norm", "mlp.down_proj", "mlp_bias"),
    _norm("norm", "D", "norm", "model.norm.weight"),
    WeightSpec("lm_head", "VD", "vocab embed", "lm_head.weight", "V D",
           "normal", decay=True, only_if="untied_embeddings"),
)
# fmt: on


def weight_specs(config: LlamaConfig) -> tuple[WeightSpec, ...]:
    """The rows of `WEIGHTS` that a model of this configuration has."""
    return tuple(w for w in WEIGHTS if not w.only_if or getattr(config, w.only_if))


def weight_shape(weight: WeightSpec, config: LlamaConfig) -> tuple[int, ...]:
    return tuple(config.sizes[letter] for letter in weight.dims)


def hf_shape(weight: WeightSpec, config: LlamaConfig) -> tuple[int, ...]:
    """Shape of one Hugging Face tensor, i.e. of one layer of a stacked weight."""
    return tuple(math.prod(config.sizes[c] for c in dim) for dim in weight.hf_dims.split())


def build_tree(config: LlamaConfig, leaf: Callable[[WeightSpec], object]) -> Params:
    """A parameter tree with `leaf(weight)` in each weight's place."""
    return traverse_util.unflatten_dict({w.path: leaf(w) for w in weight_specs(config)}, sep=".")


def flatten(params: Params) -> dict[str, jax.Array]:
    """The tree as {dotted path: leaf}, the form in which paths of `WEIGHTS` look leaves up."""
    return traverse_util.flatten_dict(params, sep=".")


def abstract(config: LlamaConfig, dtype: jnp.dtype = jnp.float32) -> Params:
    """Shapes and dtypes without memory: what `jax.eval_shape` would give for `init`."""
    return build_tree(config, lambda w: jax.ShapeDtypeStruct(weight_shape(w, config), dtype))


@functools.cache  # every step's FLOPs ask
def count(config: LlamaConfig) -> int:
    """Number of parameters."""
    return sum(math.prod(weight_shape(w, config)) for w in weight_specs(config))


def init(config: LlamaConfig, key: jax.Array, dtype: jnp.dtype = jnp.float32) -> Params:
    """Random parameters, as transformers initialises them: normal(0, initializer_range)."""
    keys = {w.path: jax.random.fold_in(key, i) for i, w in enumerate(WEIGHTS)}

    def leaf(w: WeightSpec) -> jax.Array:
        if w.init == "normal":
            std = config.initializer_range
            return std * jax.random.normal(keys[w.path], weight_shape(w, config), dtype)
        return jnp.full(weight_shape(w, config), {"ones": 1, "zeros": 0}[w.init], dtype)

    return build_tree(config, leaf)


def decay_mask(config: LlamaConfig) -> Params:
    """The tree with True where weight decay applies: matrices yes, norms and biases no."""
    return build_tree(config, lambda w: w.decay)


def matrix_axes(config: LlamaConfig) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """{weight path: its axes that are rows of a layer's matrix, and those that are columns}.

    Matrices are Hugging Face's: q_proj "LDNH" of "NH D" -> (2, 3), (1,). Vectors have no columns.
    """

    def axes(weight: WeightSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
        rows, columns = (*weight.hf_dims.split(), "")[:2]
        at = weight.dims.index
        return tuple(map(at, rows)), tuple(map(at, columns))

    return {w.path: axes(w) for w in weight_specs(config)}


def from_hf_layout(weight: WeightSpec, array: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """One Hugging Face tensor -> our layout of one layer (a view, no copy).

    For example q_proj, "NH D" -> "DNH": [N*H, D] is reshaped to [N, H, D] and transposed.
    """
    letters = weight.hf_dims.replace(" ", "")
    split = array.reshape([config.sizes[c] for c in letters])
    return split.transpose([letters.index(c) for c in weight.layer_dims])


def to_hf_layout(weight: WeightSpec, array: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """The inverse of `from_hf_layout`."""
    letters = weight.hf_dims.replace(" ", "")
    merged = array.transpose([weight.layer_dims.index(c) for c in letters])
    return merged.reshape(hf_shape(weight, config))
