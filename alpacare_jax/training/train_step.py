"""The compiled programs of a training run, and the state they work on."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from alpacare_jax.checkpoints import checkpoint
from alpacare_jax.checkpoints.frozen import FrozenBase
from alpacare_jax.data.token_store import Step
from alpacare_jax.distributed import sharding
from alpacare_jax.model import attention, kernel_check, llama, projections
from alpacare_jax.model import loss as loss_lib
from alpacare_jax.model import params as params_lib
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.dropout import Dropout, mix_bits, token_keys
from alpacare_jax.model.llama import Params
from alpacare_jax.training import batching, offload, optimizers, preference
from alpacare_jax.training.config import RunConfig

State = dict[str, Any]
"""{"params": float32 master weights, "opt_state": optax state} of what is trained, the model or an
adapter: what a checkpoint holds."""

Batch = dict[str, jax.Array]
"""The arrays of `data.token_store.Step` on the devices: [A, R, T], or [R, T] of one micro-batch."""

StepReport = dict[str, jax.Array]
"""{"loss", "grad_norm", "stop"} and `preference.reported`: float32 scalars of a training step."""

ACCUMULATE = "accumulate"
"""Name of the loop over micro-batches in compiled programs; `plan` looks for it."""


def accumulate(
    add: Callable[[Batch, Any], Any], arrays: Batch, num_micro: jax.Array, zero: Any
) -> Any:
    """Folds `add(micro, total)` over the first `num_micro` of A micro-batches, from `zero`."""
    if arrays["tokens"].shape[0] == 1:
        total = add({name: array[0] for name, array in arrays.items()}, zero)
        # Else XLA fuses unrolled layers' additions into what reads the sum, each into the next: 8
        # layers took it minutes.
        return jax.lax.optimization_barrier(total)

    def add_number(i, total):
        return add({name: array[i] for name, array in arrays.items()}, total)

    with jax.named_scope(ACCUMULATE):
        return jax.lax.fori_loop(0, num_micro, add_number, zero)


def _added(report: StepReport, part: tuple[jax.Array, StepReport]) -> StepReport:
    """A report with what `mean_loss` returns of one more micro-batch."""
    return jax.tree.map(jnp.add, report, {"loss": part[0]} | part[1])


@dataclasses.dataclass(frozen=True)
class TrainingProgram:
    """What a run computes, and where: its model, optimizer, state and steps on a mesh."""

    model_config: LlamaConfig
    run_config: RunConfig
    num_steps: int  # of the learning-rate schedule
    mesh: Mesh

    @property
    def dtype(self) -> jnp.dtype:
        """The compute dtype."""
        return batching.compute_dtype(self.run_config, self.mesh)

    def kernel(self, micro: Batch) -> attention.Kernel:
        """Attention over the rows of a micro-batch."""
        name, _ = batching.choose_kernel(self.run_config, self.model_config, self.mesh)
        heads = self.run_config.sharding.rules["heads"] or None
        bounds = micro.get("bounds")
        return attention.make_kernel(name, self.mesh, sharding.BATCH_AXES, heads, bounds)

    @cached_property
    def adapter(self) -> params_lib.Adapter | None:
        """What LoRA trains."""
        lora = self.run_config.lora
        return lora.adapter(self.model_config) if lora.rank else None

    @property
    def trained(self) -> params_lib.Weighted:
        """What the optimizer updates: the model, or an adapter of it."""
        return self.adapter or self.model_config

    @cached_property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """The update rule of what is trained."""
        return optimizers.make(
            self.run_config.optimizer,
            self.num_steps,
            params_lib.decay_mask(self.trained),
            params_lib.matrix_axes(self.trained),
        )

    @cached_property
    def base(self) -> FrozenBase | None:
        """The frozen weights of LoRA."""
        lora, compute = self.run_config.lora, self.run_config.model.dtype
        if not self.adapter:
            return None
        name = compute if lora.base == "auto" or lora.quantised else lora.base
        dtype = llama.compute_dtype(name, self.mesh.devices.flat[0].platform)
        sharding_config = self.run_config.sharding
        return FrozenBase(self.model_config, self.mesh, sharding_config, dtype, lora.quantised)

    @cached_property
    def base_shardings(self) -> Params:
        """NamedShardings of the frozen weights; {} without LoRA. Raises: as `state_shardings`."""
        return self.base.shardings if self.base else {}

    @cached_property
    def state_shardings(self) -> State:
        """NamedShardings of the state: moments as their parameters, on the devices or the host.

        Raises:
          ValueError: the sharding rules do not fit the model or the mesh, or the devices do not
            support optimizer.offload.
        """
        offloads = self.run_config.optimizer.offload
        sharding_config = self.run_config.sharding
        param_shardings = sharding.param_shardings(self.trained, self.mesh, sharding_config)
        if offloads:
            offload.check_supported(self.mesh, sharding_config.rules)

        def moment_sharding(moment, param_sharding, is_matrix):
            found = sharding.moment_sharding(moment.shape, param_sharding)
            # A layer's vector is not a whole tile of its stack, and TPUs send the host only tiles.
            return found.with_memory_kind(sharding.HOST_MEMORY) if offloads and is_matrix else found

        opt_state = optax.tree_map_params(
            self.optimizer,
            moment_sharding,
            jax.eval_shape(self.optimizer.init, params_lib.abstract(self.trained)),
            param_shardings,
            params_lib.decay_mask(self.trained),
            transform_non_params=lambda _: sharding.replicated(self.mesh),
        )
        return {"params": param_shardings, "opt_state": opt_state}

    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the state, with nothing allocated."""
        params = params_lib.abstract(self.trained)
        state = {"params": params, "opt_state": jax.eval_shape(self.optimizer.init, params)}
        return jax.tree.map(
            lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
            state,
            self.state_shardings,
        )

    def abstract_base(self) -> Params:
        """As `abstract_state`, of the frozen weights; {} without LoRA."""
        return self.base.abstract() if self.base else {}

    def load_base(self) -> Params:
        """The frozen weights of LoRA, sharded; {} without LoRA."""
        return self.base.load(self.run_config.model.checkpoint) if self.base else {}

    def initial_state(self) -> State:
        """The base model's parameters in float32, or a new adapter's, and zero moments; sharded."""
        shardings, adapter = self.state_shardings, self.adapter
        if adapter:
            key = jax.random.key(self.run_config.train.seed)
            make = jax.jit(lambda: params_lib.init(adapter, key), out_shardings=shardings["params"])
            params = make()
        else:
            params = checkpoint.load_params(
                self.run_config.model.checkpoint,
                self.model_config,
                dtype=jnp.float32,
                shardings=shardings["params"],
            )
        opt_state = jax.jit(self.optimizer.init, out_shardings=shardings["opt_state"])(params)
        return {"params": params, "opt_state": opt_state}

    def whole(self, params: Params, base: Params) -> Params:
        """The weights of the model as it is trained, for inference; frozen ones are not copied."""
        return projections.join(base, params, self.run_config.lora.scaling) if base else params

    def mean_loss(
        self,
        params: Params,
        micro: Batch,
        sums: Params | None = None,
        base: Params | None = None,
        step: jax.Array | None = None,
    ) -> tuple[jax.Array, StepReport]:
        """This micro-batch's part of the step's mean loss, and of `preference.reported`; float32.

        Without pairs the mean is per target token, and nothing more is reported.

        Args:
          params: what is trained.
          micro: the arrays of `data.token_store.Step`, [R, T] each.
          sums: gradients of the layers so far; those that come back include them. See `layers.run`.
          base: the frozen weights of LoRA.
          step: in training, steps done before, for LoRA's dropout; without it nothing is in fp8.
        """
        inputs = params, micro, sums, base, step
        if self.run_config.preference.beta:
            return preference.loss(self.log_probs(*inputs), micro, self.run_config.preference)
        hidden, head, chunk = self._hidden(*inputs)
        targets = micro["targets"], micro["weights"]
        return loss_lib.chunked_cross_entropy(hidden, head, *targets, chunk, bool(base)), {}

    def log_probs(
        self,
        params: Params,
        micro: Batch,
        sums: Params | None = None,
        base: Params | None = None,
        step: jax.Array | None = None,
    ) -> jax.Array:
        """[R, T]: log p of each target, 0 elsewhere. Arguments as of `mean_loss`."""
        hidden, head, chunk = self._hidden(params, micro, sums, base, step)
        targets = micro["targets"], micro["weights"] > 0
        found: Any = loss_lib.chunked_log_probs(hidden, head, *targets, chunk, bool(base))
        return found

    def _hidden(
        self,
        params: Params,
        micro: Batch,
        sums: Params | None,
        base: Params | None,
        step: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, int]:
        """Final hidden states, the output embedding, and how long the chunks of the loss are."""
        model, lora = self.run_config.model, self.run_config.lora
        fp8 = self.run_config.train.fp8 and step is not None
        module = self._module(params, micro, base, fp8)
        places = micro["tokens"], micro["positions"], micro["segments"]
        dropout = None
        if base and lora.dropout and step is not None:
            seed = mix_bits(jnp.uint32(self.run_config.train.seed)) + jnp.uint32(step)
            dropout = Dropout(lora.dropout, token_keys(*places, seed))
        hidden = module.hidden(*places, model.remat, sums, dropout)
        rows = micro["tokens"].shape[0] // sharding.batch_groups(self.mesh)  # on one device
        return hidden, module.head_VD, max(1, model.loss_tokens // rows)

    @cached_property
    def steps(self) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
        """`make_steps`, once: what has been compiled of them is not compiled again."""
        return self.make_steps()

    def _module(
        self, params: Params, micro: Batch, base: Params | None, fp8: bool = False
    ) -> llama.Llama:
        """The model for the rows of a micro-batch, of what is trained and what is frozen."""
        shardings = projections.join(self.base_shardings, self.state_shardings["params"])
        placement = sharding.placement(shardings, self.mesh, self.dtype, self.kernel(micro))
        if fp8:
            gather = placement.gather_layer
            placement = dataclasses.replace(
                placement, gather_layer=lambda layer: projections.in_fp8(gather(layer))
            )
        settings = self.model_config, self.dtype, placement
        if not base:
            return llama.Llama(params, *settings)
        scaling = self.run_config.lora.scaling
        return llama.Llama(base, *settings, adapter=params, scaling=scaling)

    def make_steps(self) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
        """The two compiled programs of a run: `train_step`, which donates the state, `eval_step`.

        Both report the means of `mean_loss`; `eval_step` takes the parameters. Both take the frozen
        weights of LoRA, {} without it, and only read them.

        `stops` [devices] are the flags of `sharding.put_flag`; "stop" of the report is their
        maximum.
        """
        shardings = self.state_shardings
        names = ("loss", *self.run_config.preference.reported)
        zero_report = {name: jnp.zeros((), jnp.float32) for name in names}

        def train_step(
            state: State, arrays: Batch, num_micro, stops, base: Params
        ) -> tuple[State, StepReport]:
            params = state["params"]
            step = optax.tree.get_all_with_path(state["opt_state"], "count")[0][1]

            def add(micro, total):
                # Gradients of the layers go in as `sums` and come back with this micro-batch's
                # added; the others are added here:
                #   grads  = {"layers": G,     "embed_tokens": E}
                #   new    = {"layers": G + g, "embed_tokens": e}
                #   result = {"layers": G + g, "embed_tokens": E + e}
                report, grads = total
                value_and_grad = jax.value_and_grad(self.mean_loss, has_aux=True)
                part, new = value_and_grad(params, micro, grads["layers"], base, step)
                rest = [name for name in grads if name != "layers"]
                new |= {name: jax.tree.map(jnp.add, grads[name], new[name]) for name in rest}
                return _added(report, part), new

            zero = zero_report, jax.tree.map(jnp.zeros_like, params)
            report, grads = accumulate(add, arrays, num_micro, zero)
            norm = optax.tree.norm(grads)
            report |= {"grad_norm": norm, "stop": jnp.max(stops)}
            return self._updated(state, grads, norm), report

        def eval_step(params: Params, arrays: Batch, num_micro, base: Params) -> StepReport:
            def add(micro, report):
                return _added(report, self.mean_loss(params, micro, base=base))

            return accumulate(add, arrays, num_micro, zero_report)

        replicated = sharding.replicated(self.mesh)
        rows, flags = sharding.batch_sharding(self.mesh), sharding.flag_sharding(self.mesh)
        return (
            jax.jit(
                train_step,
                in_shardings=(shardings, rows, replicated, flags, self.base_shardings),
                out_shardings=(shardings, replicated),
                donate_argnums=0,
            ),
            jax.jit(
                eval_step,
                in_shardings=(shardings["params"], rows, replicated, self.base_shardings),
                out_shardings=replicated,
            ),
        )

    def _updated(self, state: State, grads: Params, norm: jax.Array) -> State:
        """The state after the optimizer's step; `norm` is that of all gradients."""
        params, opt_state = state["params"], state["opt_state"]
        if self.run_config.optimizer.offload:
            shardings = self.state_shardings["opt_state"]
            params, opt_state = offload.update_by_layer(
                self.optimizer, grads, opt_state, params, norm, shardings
            )
        else:
            updates, opt_state = self.optimizer.update(grads, opt_state, params, grad_norm=norm)
            params = optax.apply_updates(params, updates)
        return {"params": params, "opt_state": opt_state}

    def check_kernel(self, params: Params, batch: Step, base: Params) -> str:
        """Compares the attention kernel with its definition, where the run asks for it.

        Returns:
          The line of the log about it.

        Args:
          params, base: as of the steps.
          batch: the first of the run; its first micro-batch is used.

        Raises:
          FloatingPointError: the kernel is wrong.
        """
        name, _ = batching.choose_kernel(self.run_config, self.model_config, self.mesh)
        if not self.run_config.train.check_kernel or name == "xla":  # which is the definition
            return ""
        micro = {name: array[:1] for name, array in batch.arrays.items()}
        rows = jnp.asarray(kernel_check.rows_to_check(micro["segments"][0]))

        def errors(params: Params, arrays: Batch, base: Params):
            micro = {name: array[0] for name, array in arrays.items()}
            qkv = self._module(params, micro, base).first_qkv(micro["tokens"], micro["positions"])
            places = micro["segments"], micro["positions"]
            return kernel_check.relative_errors(self.kernel(micro), qkv, *places, rows)

        placed = sharding.put_batch(micro, self.mesh)
        replicated = sharding.replicated(self.mesh)
        # Trying out kernels for a program that runs once would take 20 s on an H200.
        on_gpu = self.mesh.devices.flat[0].platform in ("gpu", "cuda")
        options = {"xla_gpu_autotune_level": 0} if on_gpu else None
        found = jax.jit(errors, out_shardings=replicated, compiler_options=options)(
            params, placed, base
        )
        return kernel_check.judge(name, *jax.device_get(found))

    def make_reference_step(self) -> jax.stages.Wrapped:
        """(params, arrays of one micro-batch [1, R, T], base) -> `preference.answer_sums`."""

        def reference_step(params: Params, arrays: Batch, base: Params) -> jax.Array:
            micro = {name: array[0] for name, array in arrays.items()}
            log_probs = self.log_probs(params, micro, base=base)
            return preference.answer_sums(log_probs, micro["segments"])

        rows = sharding.batch_sharding(self.mesh)
        return jax.jit(
            reference_step,
            in_shardings=(self.state_shardings["params"], rows, self.base_shardings),
            out_shardings=sharding.replicated(self.mesh),
        )
