"""What a run reports: lines and a page for people, metrics.jsonl for programs.

Every process makes these calls; only the first one writes.
"""

import collections
import contextlib
import math
import time
from typing import Any

import numpy as np
from etils import epath

from alpacare_jax.checkpoints.saving import TrainingCheckpoints
from alpacare_jax.data.token_store import Step
from alpacare_jax.distributed import processes
from alpacare_jax.training import metrics, optimizers
from alpacare_jax.training.console import StartupTimer, log
from alpacare_jax.training.evaluation import Evaluation
from alpacare_jax.training.report import RunReport
from alpacare_jax.training.train_step import State, StepReport, TrainingProgram
from common import messages, paths


class TrainingProgress:
    """Reads the reports of finished steps, and passes them to metrics.jsonl and progress lines.

    Reading waits for the devices, so one dispatched step stays unread: the devices never wait for
    Python. `stopping` is set once a report says that some process was asked to stop.

    Order of calls inside `with`: `start`; then for each step in order `add`, `drain` and, where a
    checkpoint is due, `save`; at the end `finish` or `stop`.
    """

    def __init__(
        self,
        workdir: epath.Path,
        program: TrainingProgram,
        first_step: int,
        startup: StartupTimer,
        watchdog: processes.Watchdog,
        checkpoints: TrainingCheckpoints,
        evaluation: Evaluation,
    ):
        """Opens metrics.jsonl and the report; `first_step` is that of the restored checkpoint."""
        self.stopping = False
        self._workdir, self._program, self._first_step = workdir, program, first_step
        self._startup, self._watchdog, self._checkpoints = startup, watchdog, checkpoints
        self._evaluation = evaluation
        self._unread: collections.deque[tuple[int, Step, StepReport]] = collections.deque()
        # All at once: a device would compute each one only after the steps queued before it.
        schedule = optimizers.schedule(program.run_config.optimizer, program.num_steps)
        self._rates = np.asarray(schedule(np.arange(program.num_steps)))
        self._peak = metrics.known_peak()
        self._save_seconds: float | None = None
        self._start = self._lap_start = self._second_step = time.perf_counter()
        self._saved, self._last_step = checkpoints.latest, first_step
        self._writer = self._report = None
        if processes.is_first():
            sinks = metrics.open_sinks(program.run_config, workdir, first_step)
            self._writer = metrics.MetricsWriter(workdir, first_step, sinks)
            self._report = RunReport(workdir, self._writer.steps)

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_) -> None:
        if not (self._writer and self._report):
            return
        # The first of two errors is the cause; a resumed run writes these lines again.
        with contextlib.suppress(*((OSError, *paths.outages()) if error else ())):
            self._note_saves()
            if error:
                text = " ".join(str(error).split()) or type(error).__name__
                self._report.add("failed", self._last_step, text)
            self._writer.close()
            self._report.close()

    def _note(self, kind: str, step: int, text: str = "", **content: Any) -> None:
        if self._report:
            self._report.add(kind, step, text, **content)

    def _note_saves(self) -> None:
        """Reports a save that has ended in the background."""
        if (latest := self._checkpoints.latest) != self._saved and latest is not None:
            self._saved = latest
            log(f"saved step {latest:,}")
            self._note("saved", latest, "checkpoint saved")

    def _write(self, step: int, values: dict[str, float]) -> None:
        self._last_step = step
        if self._writer and self._report:
            self._writer.write(step, **values)
            self._note_saves()
            self._report.refresh()

    def _lap(self) -> float:
        """Seconds since the last call."""
        before, self._lap_start = self._lap_start, time.perf_counter()
        return self._lap_start - before

    def start(self, state: State) -> None:
        """Reports a new run's base model by its held-out loss; starts the clock of the steps."""
        num_steps, first = self._program.num_steps, self._first_step
        kind, text = ("resume", "resumed from") if first else ("start", "started at")
        self._note(kind, first, f"{text} step {first:,} of {num_steps:,}", num_steps=num_steps)
        if self._report:
            self._report.refresh()
        if first:
            return
        if values := self._held_out_loss(0, state):
            self._write(0, values)
            log(f"step 0/{self._program.num_steps} | held-out loss {values['eval_loss']:.4f}")
        self._start = self._lap_start = time.perf_counter()

    def add(self, step: int, batch: Step, report: StepReport) -> None:
        """Queues the report of a step that was dispatched to the devices."""
        self._unread.append((step, batch, report))

    def drain(
        self, step: int, state: State, *, wait: bool, evaluating: bool = False
    ) -> dict[str, float]:
        """Reads all reports but the last; that of `step` too if `wait` is set or the run stops.

        Returns:
          The held-out loss after `step` under `eval_loss` where `evaluating`, which needs `wait`.

        Raises:
          FloatingPointError: a loss or norm is NaN or infinite.
        """
        held_out: dict[str, float] = {}
        while len(self._unread) > (0 if wait or self.stopping else 1):
            done, batch, report = self._unread.popleft()
            values = {name: float(value) for name, value in report.items()}
            seconds = self._lap()
            self._watchdog.reset()
            self.stopping |= values.pop("stop") > 0
            self._require_finite(values, done)
            if evaluating and done == step:
                held_out = self._held_out_loss(step, state)
            self.step(done, batch, values | held_out, seconds)
        return held_out

    def _held_out_loss(self, step: int, state: State) -> dict[str, float]:
        values = self._evaluation.loss(state)
        self._require_finite(values, step)
        for answer in self._evaluation.answers(state):
            self._note("sample", step, **answer)
        self._watchdog.reset()
        return values

    def _require_finite(self, values: dict[str, float], step: int) -> None:
        """Raises FloatingPointError, after any save in progress, if a value is NaN or infinite."""
        if all(math.isfinite(value) for value in values.values()):
            return
        self._checkpoints.wait()
        found = ", ".join(f"{name} {value}" for name, value in values.items())
        raise FloatingPointError(
            f"{found} at step {step}; the last good step is {step - 1}, the last checkpoint "
            f"{self._checkpoints.latest or 'none'}; lower optimizer.learning_rate or look at the "
            "data of this step"
        )

    def step(self, step: int, batch: Step, report: dict[str, float], seconds: float) -> None:
        """Writes the metrics of a step, and every train.log_every steps a progress line.

        Args:
          report: what the step returned, and the held-out loss where it was evaluated.
          seconds: from the end of the step before to its own.
        """
        program = self._program
        values = report | {
            "learning_rate": float(self._rates[step - 1]),
            "tokens_per_second": batch.num_tokens / seconds,
            "real_token_share": batch.num_tokens / batch.num_computed,
            "seconds": seconds,
        }
        if self._peak:
            flops = metrics.train_flops(
                program.model_config,
                batch.num_tokens,
                batch.num_pairs,
                batch.num_targets,
                program.adapter,
            )
            values["mfu"] = flops / (seconds * program.mesh.size * self._peak[0])
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
            left = since / (step - self._first_step - 1) * (program.num_steps - step)
        every = program.run_config.train.log_every
        if left is None or step == program.num_steps or step % every == 0:
            log(self._line(step, values, left))
        if "eval_loss" in values:
            self._lap()  # evaluating is not part of the next step

    def _line(self, step: int, values: dict[str, float], left: float | None) -> str:
        """One line for people; `left` is in seconds, None while there is no estimate yet."""
        parts = [
            f"step {step:,}/{self._program.num_steps:,}",
            f"loss {values['loss']:.4f}",
            f"lr {values['learning_rate']:.2e}",
            f"grad norm {values['grad_norm']:.2f}",
            f"{values['tokens_per_second']:,.0f} tokens/s",
            f"real tokens {values['real_token_share']:.0%}",
        ]
        if self._peak:
            parts.append(f"MFU {values['mfu']:.0%} of {self._peak[1]} bfloat16 peak")
        if "pair_accuracy" in values:
            parts.append(
                f"pairs right {values['pair_accuracy']:.0%}, margin {values['reward_margin']:.3f}"
            )
        if left is not None:
            parts.append(f"{messages.duration(left)} left")
        if "eval_loss" in values:
            parts.append(f"held-out loss {values['eval_loss']:.4f}")
        return " | ".join(parts)

    def save(self, step: int, state: State, held_out: dict[str, float]) -> None:
        """Saves a checkpoint, and reports how long that paused training.

        metrics.jsonl is complete up to here, as a run resumed from this save reads no further. It
        has the pause in the line of the next step, which was delayed.
        """
        if self._writer:
            self._writer.sync()
        self._save_seconds = seconds = self._checkpoints.save(step, state, held_out)
        log(f"step {step:,}: saving in the background; training paused for {seconds:.2f} s")
        self._lap()
        self._watchdog.reset()

    def stop(self, step: int, reason: str) -> None:
        """Reports that the run was asked to stop, and has saved `step`."""
        self._note_saves()
        text = f"stopped by {reason}; checkpoint saved at step {step}"
        log(f"{text}; rerun the same command to resume")
        self._note("stopped", step, text)

    def finish(self) -> None:
        """Reports the end of the run."""
        self._note_saves()
        took = messages.duration(time.perf_counter() - self._start)
        log(f"finished in {took}; checkpoints are in {self._workdir}, curves in report.html")
        self._note("finished", self._program.num_steps, f"finished in {took}")
