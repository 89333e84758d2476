"""Every weight of LLaMA, declared once.

Initialisation, sharding, both directions of conversion and the weight-decay mask follow from the
table `WEIGHTS`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params


@dataclasses.dataclass(frozen=True)
class WeightSpec:
    """One row of `WEIGHTS`; dims are letters of the legend in `llama.py`."""

    path: str  # dotted path in the parameter tree
    dims: str  # our layout, one letter per axis; a leading L means stacked over layers
    axes: str  # logical axis of each dim, for the sharding rules
    hf_key: str  # Hugging Face's name; {} is the layer
    hf_dims: str  # Hugging Face's layout of one layer: "NH D" is [N*H, D]
    init: str  # "normal" with initializer_range, "ones" or "zeros"
    decay: bool  # whether weight decay applies
    only_if: str = ""  # LlamaConfig flag that the weight requires; "" for none

    @property
    def stacked(self) -> bool:
        """Whether the leading axis is the layer."""
        return self.dims.startswith("L")

    @property
    def layer_dims(self) -> str:
        """`dims` of one layer."""
        return self.dims.removeprefix("L")


def _embedding(path: str, hf_key: str, only_if: str = "") -> WeightSpec:
    return WeightSpec(path, "VD", "vocab embed", hf_key, "V D", "normal", True, only_if)


def _norm(path: str, dims: str, axes: str, hf_key: str) -> WeightSpec:
    return WeightSpec(path, dims, axes, hf_key, "D", "ones", decay=False)


def _projection(name: str, dims: str, axes: str, hf_dims: str) -> WeightSpec:
    key = f"model.layers.{{}}.{name}.weight"
    return WeightSpec(f"layers.{name}", f"L{dims}", f"layers {axes}", key, hf_dims, "normal", True)


def _bias(name: str, dims: str, axes: str, only_if: str) -> WeightSpec:
    key = f"model.layers.{{}}.{name.replace('_bias', '_proj')}.bias"
    path, axes = f"layers.{name}", f"layers {axes}"
    return WeightSpec(path, f"L{dims}", axes, key, dims, "zeros", False, only_if)


# fmt: off
WEIGHTS: tuple[WeightSpec, ...] = (
    _embedding("embed_tokens", "model.embed_tokens.weight"),
    _norm("layers.input_layernorm", "LD", "layers norm", "model.layers.{}.input_layernorm.weight"),
    _projection("self_attn.q_proj", "DNH", "embed heads head_dim", "NH D"),
    _projection("self_attn.k_proj", "DKH", "embed kv_heads head_dim", "KH D"),
    _projection("self_attn.v_proj", "DKH", "embed kv_heads head_dim", "KH D"),
    _projection("self_attn.o_proj", "NHD", "heads head_dim embed", "D NH"),
    _bias("self_attn.q_bias", "NH", "heads head_dim", "attention_bias"),
    _bias("self_attn.k_bias", "KH", "kv_heads head_dim", "attention_bias"),
    _bias("self_attn.v_bias", "KH", "kv_heads head_dim", "attention_bias"),
    _bias("self_attn.o_bias", "D", "norm", "attention_bias"),
    _norm("layers.post_attention_layernorm", "LD", "layers norm",
          "model.layers.{}.post_attention_layernorm.weight"),
    _projection("mlp.gate_proj", "DF", "embed ffn", "F D"),
    _projection("mlp.up_proj", "DF", "embed ffn", "F D"),
    _projection("mlp.down_proj", "FD", "ffn embed", "D F"),
    _bias("mlp.gate_bias", "F", "ffn", "mlp_bias"),
    _bias("mlp.up_bias", "F", "ffn", "mlp_bias"),
    _bias("mlp.down_bias", "D", "norm", "mlp_bias"),
    _norm("norm", "D", "norm", "model.norm.weight"),
    _embedding("lm_head", "lm_head.weight", only_if="untied_embeddings"),
)
# fmt: on


def weight_specs(config: LlamaConfig) -> tuple[WeightSpec, ...]:
    """The rows of `WEIGHTS` that a model of this configuration has."""
    return tuple(w for w in WEIGHTS if not w.only_if or getattr(config, w.only_if))


def weight_shape(weight: WeightSpec, config: LlamaConfig) -> tuple[int, ...]:
    """Shape of a weight in our layout."""
    return tuple(config.sizes[letter] for letter in weight.dims)


def hf_shape(weight: WeightSpec, config: LlamaConfig) -> tuple[int, ...]:
    """Shape of one Hugging Face tensor, i.e. of one layer of a stacked weight."""
    return tuple(math.prod(config.sizes[c] for c in dim) for dim in weight.hf_dims.split())


def build_tree(config: LlamaConfig, leaf: Callable[[WeightSpec], object]) -> Params:
    """A parameter tree with `leaf(weight)` for each weight."""
    return traverse_util.unflatten_dict({w.path: leaf(w) for w in weight_specs(config)}, sep=".")


def flatten(params: Params) -> dict[str, Any]:
    """The tree as {dotted path: leaf}, keyed like the paths of `WEIGHTS`."""
    return traverse_util.flatten_dict(params, sep=".")


def abstract(config: LlamaConfig, dtype: DTypeLike = jnp.float32) -> Params:
    """Shapes and dtypes with nothing allocated: what `jax.eval_shape` returns for `init`."""
    return build_tree(config, lambda w: jax.ShapeDtypeStruct(weight_shape(w, config), dtype))


@functools.cache  # called for the FLOPs of every step
def count(config: LlamaConfig) -> int:
    """Number of parameters."""
    return sum(math.prod(weight_shape(w, config)) for w in weight_specs(config))


def init(config: LlamaConfig, key: jax.Array, dtype: DTypeLike = jnp.float32) -> Params:
    """Random parameters, initialised as in transformers: normal(0, initializer_range)."""
    keys = {w.path: jax.random.fold_in(key, i) for i, w in enumerate(WEIGHTS)}

    def leaf(w: WeightSpec) -> jax.Array:
        if w.init == "normal":
            std = config.initializer_range
            return std * jax.random.normal(keys[w.path], weight_shape(w, config), dtype)
        return jnp.full(weight_shape(w, config), {"ones": 1, "zeros": 0}[w.init], dtype)

    return build_tree(config, leaf)


def decay_mask(config: LlamaConfig) -> Params:
    """A tree of bools, True where weight decay applies: matrices yes, norms and biases no."""
    return build_tree(config, lambda w: w.decay)


def matrix_axes(config: LlamaConfig) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """{path: (axes of the rows, axes of the columns)} of each weight's matrix in one layer.

    Rows and columns are Hugging Face's. Vectors have no columns.

        q_proj  LDNH of "NH D":  rows (2, 3), columns (1,)
        q_bias  LNH  of "NH":    rows (1, 2), columns ()
    """

    def axes(weight: WeightSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
        rows, _, columns = weight.hf_dims.partition(" ")
        index = weight.dims.index
        return tuple(map(index, rows)), tuple(map(index, columns))

    return {w.path: axes(w) for w in weight_specs(config)}


def from_hf_layout(weight: WeightSpec, array: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """One Hugging Face tensor -> our layout of one layer (a view, no copy).

    q_proj, "NH D" -> "DNH": [N*H, D] is reshaped to [N, H, D] and transposed to [D, N, H].
    """
    letters = weight.hf_dims.replace(" ", "")
    split = array.reshape([config.sizes[c] for c in letters])
    return split.transpose([letters.index(c) for c in weight.layer_dims])


def to_hf_layout(weight: WeightSpec, array: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """The inverse of `from_hf_layout`."""
    letters = weight.hf_dims.replace(" ", "")
    merged = array.transpose([weight.layer_dims.index(c) for c in letters])
    return merged.reshape(hf_shape(weight, config))
