"""What a run reports: lines for people on stderr, metrics.jsonl for programs.

Every process makes these calls; only the first one writes.
"""

import contextlib
import time

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from alpacare_jax.data.batches import Step
from alpacare_jax.distributed import processes
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.training import metrics, optimizers
from alpacare_jax.training.config import RunConfig
from common import messages, paths


def log(text: str) -> None:
    """Prints a line on stderr."""
    if processes.is_first():
        messages.log(text)


def progress_line(
    step: int, num_steps: int, values: dict[str, float], peak_source: str, left: float | None
) -> str:
    """One line for people; `left` is in seconds, None while there is no estimate yet."""
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
        parts.append(f"{messages.duration(left)} left")
    if "eval_loss" in values:
        parts.append(f"held-out loss {values['eval_loss']:.4f}")
    return " | ".join(parts)


class StartupTimer:
    """Measures the phases from the start of the process to the end of the first step."""

    def __init__(self):
        self._phases: list[tuple[str, float]] = []
        self._compiling = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add_compilation)

    def _add_compilation(self, event: str, duration_secs: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self._compiling += duration_secs

    def end_phase(self, name: str) -> None:
        """Names the phase that ends here."""
        before = sum(seconds for _, seconds in self._phases)
        self._phases.append((name, processes.seconds_since_start() - before))

    def summary(self) -> str:
        """All phases in one line."""
        total = sum(seconds for _, seconds in self._phases)
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._phases)
        return f"first step after {total:.0f} s: {phases}; compiling took {self._compiling:.1f} s"


class TrainingProgress:
    """Reports the steps of a run.

    Order of calls inside `with`: `start`, then for each step in order `lap`, `step` and, where a
    checkpoint is due, `before_save` and `saved`; at the end `finish`.
    """

    def __init__(
        self,
        workdir: epath.Path,
        run_config: RunConfig,
        model_config: LlamaConfig,
        mesh: Mesh,
        first_step: int,
        num_steps: int,
        startup: StartupTimer,
    ):
        """Opens metrics.jsonl. `first_step`: of the restored checkpoint, 0 for a new run."""
        self._workdir, self._run_config, self._model_config = workdir, run_config, model_config
        self._first_step, self._num_steps, self._startup = first_step, num_steps, startup
        # All at once: a device would compute each one only after the steps queued before it.
        schedule = optimizers.schedule(run_config.optimizer, num_steps)
        self._rates = np.asarray(schedule(np.arange(num_steps)))
        self._peak, self._peak_source = metrics.peak_flops()
        self._devices = mesh.size
        self._save_seconds: float | None = None
        self._start = self._lap = self._second_step = time.perf_counter()
        self._writer = None
        if processes.is_first():
            tensorboard = run_config.train.tensorboard
            self._writer = metrics.MetricsWriter(workdir, first_step, tensorboard)

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        if self._writer:
            # The first of two errors is the cause; a resumed run writes these lines again.
            with contextlib.suppress(*((OSError, *paths.outages()) if error else ())):
                self._writer.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._writer:
            self._writer.write(step, **values)

    def start(self, values: dict[str, float]) -> None:
        """Starts the clock of the first step; `values` are those of the model before it, if any."""
        if values:
            self._write(0, values)
            log(f"step 0/{self._num_steps} | held-out loss {values['eval_loss']:.4f}")
        self._start = self._lap = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        before, self._lap = self._lap, time.perf_counter()
        return self._lap - before

    def step(self, step: int, batch: Step, report: dict[str, float], seconds: float) -> None:
        """Writes the metrics of a step, and every train.log_every steps a progress line.

        Args:
          report: what the step returned, and the held-out loss where it was evaluated.
          seconds: from the end of the step before to its own.
        """
        needed = metrics.train_flops(
            self._model_config, batch.num_tokens, batch.num_pairs, batch.num_targets
        )
        values = report | {
            "learning_rate": float(self._rates[step - 1]),
            "tokens_per_second": batch.num_tokens / seconds,
            "real_token_share": batch.num_tokens / batch.num_computed,
            "mfu": needed / (seconds * self._devices * self._peak),
            "seconds": seconds,
        }
        if self._save_seconds is not None:
            values["save_stall_seconds"], self._save_seconds = self._save_seconds, None
        self._write(step, values)
        left = None
        if step == self._first_step + 1:  # mostly compilation: no pace to extrapolate
            self._startup.end_phase("first step")
            log(self._startup.summary())
            self._second_step = time.perf_counter()
        else:
            since = time.perf_counter() - self._second_step
            left = since / (step - self._first_step - 1) * (self._num_steps - step)
        every = self._run_config.train.log_every
        if left is None or step == self._num_steps or step % every == 0:
            log(progress_line(step, self._num_steps, values, self._peak_source, left))
        if "eval_loss" in values:
            self.lap()  # evaluating is not part of the next step

    def saved(self, step: int, seconds: float) -> None:
        """Reports a save that paused training for `seconds`; the rest runs in the background.

        metrics.jsonl has them in the line of the next step, which was delayed.
        """
        log(f"step {step:,}: saving in the background; training paused for {seconds:.2f} s")
        self._save_seconds = seconds
        self.lap()

    def before_save(self) -> None:
        """Completes metrics.jsonl up to here: a run resumed from this save reads no further."""
        if self._writer:
            self._writer.sync()

    def finish(self) -> None:
        """Reports the end of the run."""
        took = messages.duration(time.perf_counter() - self._start)
        log(f"finished in {took}; checkpoints are in {self._workdir}")
