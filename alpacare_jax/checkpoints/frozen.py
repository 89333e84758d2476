"""The base of an adapter: a model's weights, sharded, its projections quantised on the way in."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from jax.sharding import Mesh, NamedSharding

from alpacare_jax.checkpoints import checkpoint, finite, layerwise
from alpacare_jax.distributed import sharding
from alpacare_jax.distributed.sharding import ShardingConfig
from alpacare_jax.model import params as params_lib
from alpacare_jax.model import quantised
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params
from alpacare_jax.model.params import WeightSpec


@dataclasses.dataclass(frozen=True)
class FrozenBase:
    """How a base is held on the devices.

    Projections are quantised from the values that are stored, all other weights are cast.
    """

    config: LlamaConfig
    mesh: Mesh
    sharding_config: ShardingConfig
    dtype: jnp.dtype  # of what is not quantised
    format: str  # of projections: one of quantised.FORMATS, "" for `dtype`

    def _quantises(self, weight: WeightSpec) -> bool:
        return bool(self.format) and weight.path.endswith("_proj")

    def _abstract(self, weight: WeightSpec) -> Any:
        shape = params_lib.weight_shape(weight, self.config)
        if self._quantises(weight):
            return quantised.abstract(shape, params_lib.input_axes(weight), self.format)
        return jax.ShapeDtypeStruct(shape, self.dtype)

    @functools.cached_property
    def _of_weights(self) -> dict[str, NamedSharding]:
        """The shardings of the weights as they are stored."""
        tree = sharding.param_shardings(self.config, self.mesh, self.sharding_config)
        return params_lib.flatten(tree)

    @functools.cached_property
    def shardings(self) -> Params:
        """The NamedShardings of `load`'s result.

        Raises:
          ValueError: the rules do not fit the model or the mesh, or a projection cannot be
            quantised.
        """

        def leaf(weight: WeightSpec) -> Any:
            of_weight, inputs = self._of_weights[weight.path], params_lib.input_axes(weight)
            if self._quantises(weight):
                return quantised.shardings(self._abstract(weight), inputs, of_weight)
            return of_weight

        return params_lib.build_tree(self.config, leaf)

    def abstract(self) -> Params:
        """Shapes, dtypes and shardings, with nothing allocated."""
        return jax.tree.map(
            lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
            params_lib.build_tree(self.config, self._abstract),
            self.shardings,
        )

    def make(self, weight: WeightSpec, array: jax.Array) -> Any:
        """A weight as it is held, of its stored values."""
        shardings = params_lib.flatten(self.shardings)[weight.path]
        inputs = params_lib.input_axes(weight)

        def convert(array: jax.Array) -> Any:
            if self._quantises(weight):
                return quantised.quantise(array, inputs, self.format)
            return array.astype(self.dtype)

        return jax.jit(convert, out_shardings=shardings)(array)

    def load(self, directory: PurePath | str, step: str = "best") -> Params:
        """The weights of a model directory; one of them at a time is held as it is stored.

        Raises: as `checkpoint.load_params`.
        """
        if not self.format:
            return checkpoint.load_params(
                directory, self.config, step=step, dtype=self.dtype, shardings=self.shardings
            )
        specs = {weight.path: weight for weight in params_lib.weight_specs(self.config)}
        held = {
            path: self.make(specs[path], array) for path, array in self._stored(directory, step)
        }
        return params_lib.build_tree(self.config, lambda weight: held[weight.path])

    def _stored(self, directory: PurePath | str, step: str) -> Iterator[tuple[str, jax.Array]]:
        """The stored weights, one after the other; each process reads its own shards."""
        arrays = layerwise.open_arrays(PurePath(directory), self.config, step)
        for path, array in arrays.items():
            read = functools.partial(_read, array)
            weight = jax.make_array_from_callback(array.shape, self._of_weights[path], read)
            if unusable := finite.unusable({path: weight}):
                raise ValueError(f"{directory}: weight {unusable}; {finite.TAKE_ANOTHER}")
            yield path, weight


def _read(array: tensorstore.TensorStore, index: Any) -> np.ndarray:
    return array[index].read().result()
