"""The compiled programs of a training run, and the state that they work on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from alpacare_jax.distributed import sharding
from alpacare_jax.distributed.sharding import ShardingConfig
from alpacare_jax.model import attention, llama, params
from alpacare_jax.model import loss as loss_lib
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Params
from alpacare_jax.training import offload
from alpacare_jax.training.config import ModelConfig, RunConfig

State = dict[str, Any]
"""{"params": float32 master weights, "opt_state": optax state}: what a checkpoint holds."""


def attention_kernel(shape: LlamaConfig, model: ModelConfig, mesh: Mesh) -> str:
    """The attention kernel that a run uses; see `attention.choose_kernel`."""
    platform = mesh.devices.flat[0].platform
    dtype = llama.compute_dtype(model.dtype, platform)
    return attention.choose_kernel(model.attention, platform, dtype, shape.head_dim)


ACCUMULATE = "accumulate"
"""Name of the loop over micro-batches in compiled programs; `plan` looks for it."""


def mean_loss(
    weights: Params,
    micro: dict[str, jax.Array],
    shape: LlamaConfig,
    model: ModelConfig,
    mesh: Mesh,
    how: ShardingConfig,
    sums: Params | None = None,
) -> jax.Array:
    """This micro-batch's part of the step's mean loss a target token; scalar, float32.

    Args:
      micro: the arrays of `data.Step`, [R, T] each.
      sums: gradients of the layers so far; those that come back have them added. See `layers.run`.
    """
    dtype = llama.compute_dtype(model.dtype, mesh.devices.flat[0].platform)
    kernel = attention_kernel(shape, model, mesh)
    placement = sharding.placement(shape, mesh, how, dtype, kernel)
    module = llama.Llama(weights, shape, dtype, placement)
    rows = micro["tokens"].shape[0] // sharding.batch_groups(mesh)  # on one device
    hidden = module.hidden(
        micro["tokens"], micro["positions"], micro["segments"], model.remat, sums
    )
    chunk = max(1, model.loss_tokens // rows)
    return loss_lib.chunked_cross_entropy(
        hidden, module.head_VD, micro["targets"], micro["weights"], chunk
    )


def accumulate(
    add: Callable[[dict[str, jax.Array], Any], Any],
    arrays: dict[str, jax.Array],
    num_micro: jax.Array,
    zero: Any,
) -> Any:
    """`add(micro, total)` for the first `num_micro` of A micro-batches, from `zero` on."""
    if arrays["tokens"].shape[0] == 1:
        return add({name: array[0] for name, array in arrays.items()}, zero)

    def add_number(i, total):
        return add({name: array[i] for name, array in arrays.items()}, total)

    with jax.named_scope(ACCUMULATE):
        return jax.lax.fori_loop(0, num_micro, add_number, zero)


def make_steps(
    shape: LlamaConfig, config: RunConfig, update: optax.GradientTransformation, mesh: Mesh
) -> tuple[Callable, Callable]:
    """The two compiled programs of a run.

    train_step(state, arrays, num_micro, stops) -> state, {"loss", "grad_norm", "stop"}
      state is donated; stops [devices] are the flags of `sharding.put_flag`, stop their greatest
    eval_step(weights, arrays, num_micro) -> loss
    """

    def loss_of(weights, micro, sums=None):
        return mean_loss(weights, micro, shape, config.model, mesh, config.sharding, sums)

    def train_step(state: State, arrays, num_micro, stops):
        weights = state["params"]

        def add(micro, total):
            loss, grads = total
            part, new = jax.value_and_grad(loss_of)(weights, micro, grads["layers"])
            rest = [name for name in grads if name != "layers"]  # the layers' are added already
            return loss + part, new | {n: jax.tree.map(jnp.add, grads[n], new[n]) for n in rest}

        zero = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, weights))
        loss, grads = accumulate(add, arrays, num_micro, zero)
        norm = optax.tree.norm(grads)
        weights, opt_state = apply(grads, state["opt_state"], weights, norm)
        report = {"loss": loss, "grad_norm": norm, "stop": jnp.max(stops)}
        return {"params": weights, "opt_state": opt_state}, report

    def apply(grads, opt_state, weights, norm):
        if config.optimizer.offload:
            return offload.update_by_layer(
                update, grads, opt_state, weights, norm, shardings["opt_state"]
            )
        updates, opt_state = update.update(grads, opt_state, weights, grad_norm=norm)
        return optax.apply_updates(weights, updates), opt_state

    def eval_step(weights, arrays, num_micro):
        zero = jnp.zeros((), jnp.float32)
        add = lambda micro, total: total + loss_of(weights, micro)  # noqa: E731
        return accumulate(add, arrays, num_micro, zero)

    shardings = state_shardings(shape, config, update, mesh)
    batch, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    return (
        jax.jit(
            train_step,
            in_shardings=(shardings, batch, whole, sharding.flag_sharding(mesh)),
            out_shardings=(shardings, whole),
            donate_argnums=0,
        ),
        jax.jit(eval_step, in_shardings=(shardings["params"], batch, whole), out_shardings=whole),
    )


def state_shardings(
    shape: LlamaConfig, config: RunConfig, update: optax.GradientTransformation, mesh: Mesh
) -> State:
    """NamedShardings of the state: moments lie where their weights lie, or on those hosts."""
    of_params = sharding.param_shardings(shape, mesh, config.sharding)
    if config.optimizer.offload:
        offload.check_supported(mesh, config.sharding.rules)

    def of_moment(moment, of_weight, is_matrix):
        found = sharding.moment_sharding(moment.shape, of_weight)
        # A layer's vector is no whole tile of its stack, and TPUs send the host nothing less.
        hosted = config.optimizer.offload and is_matrix
        return found.with_memory_kind(offload.HOST) if hosted else found

    abstract = jax.eval_shape(update.init, params.abstract(shape))
    whole = sharding.replicated(mesh)
    of_opt_state = optax.tree_map_params(
        update,
        of_moment,
        abstract,
        of_params,
        params.decay_mask(shape),
        transform_non_params=lambda _: whole,
    )
    return {"params": of_params, "opt_state": of_opt_state}


def abstract_state(
    shape: LlamaConfig, config: RunConfig, update: optax.GradientTransformation, mesh: Mesh
) -> State:
    """Shapes, dtypes and shardings of the state, with nothing allocated."""
    weights = params.abstract(shape)
    state = {"params": weights, "opt_state": jax.eval_shape(update.init, weights)}
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        state,
        state_shardings(shape, config, update, mesh),
    )
