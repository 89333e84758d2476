"""Every weight of LLaMA, declared once, and of the adapters that LoRA adds to it.

Initialisation, sharding, both directions of conversion and the weight-decay mask follow from the
table `WEIGHTS`; an adapter's weights follow from the projection that it adapts.
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
    init: str  # "normal" with initializer_range, "ones", "zeros", or "uniform", see `init`
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


def _factors(weight: WeightSpec) -> tuple[WeightSpec, WeightSpec]:
    """The low-rank factors of a projection's update, with peft's names; R is the rank.

    q_proj  LDNH of "NH D":  q_lora_a  LDR of "R D",  q_lora_b  LRNH of "NH R"
    """
    rows, columns = weight.hf_dims.split()
    axes = dict(zip(weight.dims, weight.axes.split(), strict=True)) | {"R": "rank"}

    def factor(part: str, dims: str, hf_dims: str, init: str) -> WeightSpec:
        return WeightSpec(
            weight.path.replace("_proj", f"_lora_{part.lower()}"),
            dims,
            " ".join(axes[letter] for letter in dims),
            "base_model.model." + weight.hf_key.replace(".weight", f".lora_{part}.weight"),
            hf_dims,
            init,
            decay=True,
        )

    return (
        factor("A", f"L{columns}R", f"R {columns}", "uniform"),
        factor("B", f"LR{rows}", f"{rows} R", "zeros"),
    )


FACTORS = {w.path.rpartition(".")[2]: _factors(w) for w in WEIGHTS if w.path.endswith("_proj")}
"""Projection, such as q_proj -> its update's factors."""


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The weights that LoRA adds to a model; the functions below take it in place of the model."""

    model: LlamaConfig
    rank: int
    targets: tuple[str, ...]  # projections, keys of FACTORS

    def __post_init__(self):
        for name in self.targets:
            rows, columns = (f.hf_dims.replace("R", "").strip() for f in FACTORS[name][::-1])
            limit = min(math.prod(self.model.sizes[c] for c in dim) for dim in (rows, columns))
            if self.rank > limit:
                raise ValueError(
                    f"rank {self.rank} is over {limit}, the most that {name} of this model has"
                )

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each letter that occurs in the weights."""
        return self.model.sizes | {"R": self.rank}


Weighted = LlamaConfig | Adapter
"""What has weights."""


def weight_specs(config: Weighted) -> tuple[WeightSpec, ...]:
    """The rows of `WEIGHTS` that a model of this configuration has, or an adapter's factors."""
    if isinstance(config, Adapter):
        return tuple(f for name in FACTORS if name in config.targets for f in FACTORS[name])
    return tuple(w for w in WEIGHTS if not w.only_if or getattr(config, w.only_if))


def weight_shape(weight: WeightSpec, config: Weighted) -> tuple[int, ...]:
    """Shape of a weight in our layout."""
    return tuple(config.sizes[letter] for letter in weight.dims)


def hf_shape(weight: WeightSpec, config: Weighted) -> tuple[int, ...]:
    """Shape of one Hugging Face tensor, i.e. of one layer of a stacked weight."""
    return tuple(math.prod(config.sizes[c] for c in dim) for dim in weight.hf_dims.split())


def build_tree(config: Weighted, leaf: Callable[[WeightSpec], object]) -> Params:
    """A parameter tree with `leaf(weight)` for each weight."""
    return traverse_util.unflatten_dict({w.path: leaf(w) for w in weight_specs(config)}, sep=".")


def flatten(params: Params) -> dict[str, Any]:
    """The tree as {dotted path: leaf}, keyed like the paths of `WEIGHTS`."""
    return traverse_util.flatten_dict(params, sep=".")


def abstract(config: Weighted, dtype: DTypeLike = jnp.float32) -> Params:
    """Shapes and dtypes with nothing allocated: what `jax.eval_shape` returns for `init`."""
    return build_tree(config, lambda w: jax.ShapeDtypeStruct(weight_shape(w, config), dtype))


@functools.cache  # called for the FLOPs of every step
def count(config: Weighted) -> int:
    """Number of parameters."""
    return sum(math.prod(weight_shape(w, config)) for w in weight_specs(config))


def init(config: Weighted, key: jax.Array, dtype: DTypeLike = jnp.float32) -> Params:
    """Random parameters: as in transformers normal(0, initializer_range), an adapter's as in peft.

    That is zero for B, and for A uniform within 1 / sqrt(columns): torch's Linear, kaiming_uniform_
    with a = sqrt(5).
    """
    every = (*WEIGHTS, *(factor for pair in FACTORS.values() for factor in pair))
    keys = {w.path: jax.random.fold_in(key, i) for i, w in enumerate(every)}

    def leaf(w: WeightSpec) -> jax.Array:
        shape = weight_shape(w, config)
        if w.init == "normal" and isinstance(config, LlamaConfig):
            return config.initializer_range * jax.random.normal(keys[w.path], shape, dtype)
        if w.init == "uniform":
            bound = hf_shape(w, config)[1] ** -0.5
            return jax.random.uniform(keys[w.path], shape, dtype, -bound, bound)
        return jnp.full(shape, {"ones": 1, "zeros": 0}[w.init], dtype)

    return build_tree(config, leaf)


def decay_mask(config: Weighted) -> Params:
    """A tree of bools, True where weight decay applies: matrices yes, norms and biases no."""
    return build_tree(config, lambda w: w.decay)


def matrix_axes(config: Weighted) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
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


def input_axes(weight: WeightSpec) -> int:
    """How many axes of a projection in our layout, after the layers', are inputs: the first ones.

    q_proj  LDNH of "NH D":  1,  o_proj  LNHD of "D NH":  2
    """
    return len(weight.hf_dims.partition(" ")[2])


def from_hf_layout(weight: WeightSpec, array: np.ndarray, config: Weighted) -> np.ndarray:
    """One Hugging Face tensor -> our layout of one layer (a view, no copy).

    q_proj, "NH D" -> "DNH": [N*H, D] is reshaped to [N, H, D] and transposed to [D, N, H].
    """
    letters = weight.hf_dims.replace(" ", "")
    split = array.reshape([config.sizes[c] for c in letters])
    return split.transpose([letters.index(c) for c in weight.layer_dims])


def to_hf_layout(weight: WeightSpec, array: np.ndarray, config: Weighted) -> np.ndarray:
    """The inverse of `from_hf_layout`."""
    letters = weight.hf_dims.replace(" ", "")
    merged = array.transpose([weight.layer_dims.index(c) for c in letters])
    return merged.reshape(hf_shape(weight, config))
