"""The same model on both sides, set up for training: ours, and transformers with torch.

jax and torch are imported inside functions: a worker must not pay for the other side's memory.
"""

import contextlib
import json
import math
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax
    import numpy as np
    import torch

    from alpacare_jax.data import batches as data
    from alpacare_jax.model.config import LlamaConfig
    from alpacare_jax.training.config import RunConfig

LEARNING_RATE = 1e-4
IGNORED = -100
"""transformers' label of a position without loss."""


@contextlib.contextmanager
def both_forms(checkpoint: str, size: str = "") -> Iterator[Path]:
    """A temporary folder with the same fp32 weights as `ours` and as `theirs` (Hugging Face's).

    Args:
      checkpoint: model directory; "" makes random weights of the variant `size`.
    """
    if checkpoint and not (Path(checkpoint) / "config.json").is_file():
        raise FileNotFoundError(
            f"--checkpoint={checkpoint} is no model directory; make one with "
            "python -m alpacare_jax.convert"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own, so that this one stays small.
        process = multiprocessing.get_context("spawn").Process(
            target=_write, args=(checkpoint, size, folder)
        )
        process.start()
        process.join()
        if process.exitcode:
            raise ChildProcessError("writing the model failed; see above")
        yield folder


def _write(checkpoint: str, size: str, folder: Path) -> None:
    import jax

    from alpacare_jax.checkpoints import checkpoint as checkpoint_lib
    from alpacare_jax.checkpoints import export
    from alpacare_jax.model import params
    from alpacare_jax.model.config import VARIANTS

    ours = folder / "ours"
    if checkpoint:
        ours.symlink_to(Path(checkpoint).resolve())
    else:
        config = VARIANTS[size]
        ours.mkdir()
        (ours / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
        checkpoint_lib.save_params(ours, params.init(config, jax.random.key(0)))
    export.to_hf(ours, folder / "theirs", "best", "float32")


def run_config(config: Any, **changes: dict[str, Any]) -> "RunConfig":
    """A config file's content with some keys of some sections changed.

    >>> run_config(FLAGS.config, model={"remat": "full"}, train={"batch_size": 16})
    """
    from alpacare_jax.training.config import RunConfig
    from common import sections

    content = config.to_dict()
    constant = {"schedule": "constant", "warmup_ratio": 0.0, "learning_rate": LEARNING_RATE}
    for section, keys in ({"optimizer": constant} | changes).items():
        content[section] |= keys
    return sections.build(RunConfig, content)


class OurTraining:
    """The real training step of `alpacare_jax.train`."""

    def __init__(self, config: "RunConfig", shape: "LlamaConfig", random: bool = False):
        import jax

        from alpacare_jax.distributed import sharding
        from alpacare_jax.model import params
        from alpacare_jax.training.train_step import TrainingProgram

        self.mesh = mesh = sharding.make_mesh(config.sharding)
        self._program = program = TrainingProgram(shape, config, 1000, mesh)
        self._base: Any = {}
        if random and program.adapter:

            def frozen():
                whole = params.init(shape, jax.random.key(1))
                return jax.tree.map(
                    lambda x, of: x.astype(of.dtype), whole, program.abstract_base()
                )

            self._base = jax.jit(frozen, out_shardings=program.base_shardings)()
            self._state = program.initial_state()
        elif random:

            def init(key):
                weights = params.init(shape, key)
                return {"params": weights, "opt_state": program.optimizer.init(weights)}

            self._state = jax.jit(init, out_shardings=program.state_shardings)(jax.random.key(0))
        else:
            self._state, self._base = program.initial_state(), program.load_base()

    def step(self, batch: "data.Step") -> float:
        """One optimiser step; its loss."""
        from alpacare_jax.distributed import sharding

        return self.run([(sharding.put_batch(batch.arrays, self.mesh), batch.num_micro)])

    def run(self, batches: "Sequence[tuple[dict[str, jax.Array], int]]") -> float:
        """A step for each (arrays on the devices, num_micro), without waiting; the last loss."""
        import jax
        import numpy as np

        from alpacare_jax.distributed import sharding

        if self._program.run_config.model.remat == "auto":
            from alpacare_jax.planning import remat, topologies

            self._program, choice = remat.choose(self._program, batches[0][0], topologies.local())
            print(choice, file=sys.stderr)
        step, _ = self._program.steps
        goes_on = sharding.put_flag(False, self.mesh)
        for arrays, num_micro in batches:
            inputs = arrays, np.int32(num_micro), goes_on, self._base
            self._state, report = step(self._state, *inputs)
        jax.block_until_ready(self._state)
        return float(report["loss"])


class TorchTraining:
    """transformers' LlamaForCausalLM under torch.optim.AdamW, with the recipe's settings.

    Args:
      model: in float32.
      options: of torch.compile; None runs eagerly.
      autocast: whether to compute in bfloat16.
    """

    def __init__(
        self, model: Any, options: dict[str, Any] | None = None, *, autocast: bool = False
    ):
        import torch

        self._parameters = list(model.parameters())
        self._device = self._parameters[0].device
        self._model = model.train() if options is None else torch.compile(model.train(), **options)
        self._optimizer = torch.optim.AdamW(
            self._parameters, LEARNING_RATE, (0.9, 0.999), 1e-8, weight_decay=0.0, fused=True
        )
        self._autocast = autocast

    def step(self, micro_batches: "Sequence[dict[str, torch.Tensor]]") -> float:
        """One optimiser step over micro-batches of `input_ids`, `labels` and what else; its loss.

        The gradient is that of the mean over all target tokens, as transformers' Trainer does it.
        """
        import torch

        targets = sum(int((micro["labels"][:, 1:] != IGNORED).sum()) for micro in micro_batches)
        count, total = torch.tensor(targets, device=self._device), 0.0
        for micro in micro_batches:
            on_device = {name: tensor.to(self._device) for name, tensor in micro.items()}
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                output = self._model(**on_device, use_cache=False, num_items_in_batch=count)
            output.loss.backward()
            total += output.loss.detach()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(total)


def padded(examples: "Sequence[np.ndarray]") -> "dict[str, torch.Tensor]":
    """A micro-batch for transformers: ids padded to the longest, each but the first a target."""
    import numpy as np
    import torch

    shape = len(examples), max(map(len, examples))
    ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED)
    mask = np.zeros(shape, np.int64)
    for row, example in enumerate(examples):
        ids[row, : len(example)], mask[row, : len(example)] = example, 1
        labels[row, 1 : len(example)] = example[1:]
    arrays = {"input_ids": ids, "labels": labels}
    if not mask.all():  # else transformers takes the faster path of full rows
        arrays["attention_mask"] = mask
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def same_loss(losses: dict[str, float]) -> None:
    """Raises ValueError where the contenders' first losses differ by over 1e-4."""
    expected = next(iter(losses.values()))
    if not all(math.isclose(loss, expected, rel_tol=1e-4) for loss in losses.values()):
        raise ValueError(f"the contenders do not compute the same: first losses {losses}")


def load_torch(folder: Path) -> Any:
    """transformers' model of a Hugging Face folder, float32."""
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
