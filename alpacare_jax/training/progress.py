"""How a run goes: lines for people on stderr, metrics.jsonl for programs. Process 0 speaks."""

import contextlib
import sys
import time

import jax
import numpy as np
from etils.epath import Path
from jax.sharding import Mesh

from alpacare_jax.data.batches import Step
from alpacare_jax.distributed import processes
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.training import metrics, optimizers
from alpacare_jax.training.config import RunConfig
from common import paths


def progress_line(
    step: int, num_steps: int, values: dict[str, float], peak_source: str, left: float | None
) -> str:
    """One line for people; `left` in seconds, None where nobody knows yet."""
    parts = [
        f"step {step:,}/{num_steps:,}",
        f"loss {values['loss']:.4f}",
        f"lr {values['learning_rate']:.2e}",
        f"grad norm {values['grad_norm']:.2f}",
        f"{values['tokens_per_second']:,.0f} tokens/s",
        f"real tokens {values['real_token_share']:.0%}",
        f"MFU {values['mfu']:.0%} of {peak_source} peak",
    ]
    if left is not None:
        parts.append(f"{metrics.duration(left)} left")
    if "eval_loss" in values:
        parts.append(f"held-out loss {values['eval_loss']:.4f}")
    return " | ".join(parts)


class Progress:
    """Collects what a run does and passes it on. Every process calls it; only the first one writes.

    Order of calls: `say` and `phase` at any time, `open` once, then inside `with`: `start_values`,
    `step`, `before_save` and `saved` for each step in order, `finished`.
    """

    def __init__(self):
        self._speaks = processes.is_first()
        self._phases: list[tuple[str, float]] = []
        self._compiling = 0.0
        self._stall: float | None = None
        self._writer: metrics.MetricsWriter | None = None
        jax.monitoring.register_event_duration_secs_listener(self._event)

    def _event(self, event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self._compiling += seconds

    def say(self, text: str) -> None:
        if self._speaks:
            print(text, file=sys.stderr, flush=True)

    def phase(self, name: str) -> None:
        """Ends a phase of the start; after the first step it is told how long each took."""
        before = sum(seconds for _, seconds in self._phases)
        self._phases.append((name, processes.seconds_since_start() - before))

    def open(
        self,
        workdir: Path,
        config: RunConfig,
        shape: LlamaConfig,
        mesh: Mesh,
        first: int,
        num_steps: int,
    ) -> None:
        """From here on steps are told; `first` is the step of the checkpoint gone on from."""
        self._config, self._shape, self._first, self._num_steps = config, shape, first, num_steps
        # All at once: a device would compute one of them only after the steps that it was given.
        self._rates = np.asarray(
            optimizers.schedule(config.optimizer, num_steps)(np.arange(num_steps))
        )
        self._peak, self._peak_source = metrics.peak_flops()
        self._devices = mesh.size
        if self._speaks:
            self._writer = metrics.MetricsWriter(workdir, first, config.train.tensorboard)

    def __enter__(self) -> "Progress":
        self._began = self._lap = time.perf_counter()
        return self

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        if self._writer:
            # Of two errors the first tells what happened; a run that goes on writes these lines.
            with contextlib.suppress(*((OSError, *paths.outages()) if error else ())):
                self._writer.close()

    def _write(self, step: int, **values: float) -> None:
        if self._writer:
            self._writer.write(step, **values)

    def start_values(self, values: dict[str, float]) -> None:
        """What is known of the model before its first step."""
        if values:
            self._write(0, **values)
            self.say(f"step 0/{self._num_steps} | held-out loss {values['eval_loss']:.4f}")
        self._began = self._lap = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        before, self._lap = self._lap, time.perf_counter()
        return self._lap - before

    def step(self, step: int, batch: Step, report: dict[str, float], seconds: float) -> None:
        """Tells of a step: what it reported, and how long after the one before it came."""
        needed = metrics.train_flops(
            self._shape, batch.num_tokens, batch.num_pairs, batch.num_targets
        )
        values = report | {
            "learning_rate": float(self._rates[step - 1]),
            "tokens_per_second": batch.num_tokens / seconds,
            "real_token_share": batch.num_tokens / batch.num_computed,
            "mfu": needed / (seconds * self._devices * self._peak),
            "seconds": seconds,
        }
        if self._stall is not None:
            values["save_stall_seconds"], self._stall = self._stall, None
        self._write(step, **values)
        left = None
        if step == self._first + 1:  # most of it was compilation: no pace for the rest
            self.phase("first step")
            self._tell_start()
            self._paced = time.perf_counter()
        else:
            pace = (time.perf_counter() - self._paced) / (step - self._first - 1)
            left = pace * (self._num_steps - step)
        every = self._config.train.log_every
        if left is None or step == self._num_steps or step % every == 0:
            self.say(progress_line(step, self._num_steps, values, self._peak_source, left))
        if "eval_loss" in values:
            self.lap()  # evaluating is not part of the next step

    def _tell_start(self) -> None:
        total = sum(seconds for _, seconds in self._phases)
        each = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._phases)
        self.say(f"first step after {total:.0f} s: {each}; compiling took {self._compiling:.1f} s")

    def saved(self, step: int, stall: float) -> None:
        """Tells of a save that held the run up for `stall` seconds; the rest is background.

        metrics.jsonl has it in the line of the step after, which is the one held up.
        """
        self.say(f"step {step:,} is being saved; the run stood still for {stall:.2f} s")
        self._stall = stall
        self.lap()

    def before_save(self) -> None:
        """metrics.jsonl is whole up to here: a run that goes on from the save reads no further."""
        if self._writer:
            self._writer.sync()

    def finished(self, workdir: Path) -> None:
        took = metrics.duration(time.perf_counter() - self._began)
        self.say(f"finished in {took}; checkpoints are in {workdir}")
