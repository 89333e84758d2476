"""Parts of the training loop: requests to stop, and step reports read one step behind."""

import collections
import math
import signal
import sys
from collections.abc import Callable

from alpacare_jax.checkpoints.checkpoint import TrainingCheckpoints
from alpacare_jax.data.batches import Step
from alpacare_jax.distributed import processes
from alpacare_jax.training.progress import TrainingProgress
from alpacare_jax.training.train_step import State, StepReport


class StopRequest:
    """Records Ctrl-C and SIGTERM, which TPU maintenance and schedulers send before they kill.

    Inside `with`, the first Ctrl-C asks the run to save and stop, as SIGTERM does at any time; the
    second one ends it immediately, as the first one does outside.
    """

    def __init__(self):
        self.requested = self.interrupted = False
        self._previous_handler = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGTERM, self._request)

    def __enter__(self) -> "StopRequest":
        self._previous_handler = signal.getsignal(signal.SIGINT)
        if self._previous_handler != signal.SIG_IGN:  # a background job: its script forwards it
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._previous_handler)

    def _request(self, *_) -> None:
        self.requested = True

    def _interrupt(self, *_) -> None:
        print("saving after this step; press Ctrl-C again to quit immediately", file=sys.stderr)
        self.requested = self.interrupted = True
        signal.signal(signal.SIGINT, self._previous_handler)


class StepReporter:
    """Reads the reports of finished steps and passes them to metrics and progress lines.

    Reading waits for the devices, so one dispatched step stays unread: the devices never wait for
    Python. `stopping` is set once a report says that some process was asked to stop.
    """

    def __init__(
        self,
        progress: TrainingProgress,
        watchdog: processes.Watchdog,
        checkpoints: TrainingCheckpoints,
        evaluate: Callable[[State], dict[str, float]],
    ):
        self.stopping = False
        self._progress, self._watchdog, self._checkpoints = progress, watchdog, checkpoints
        self._evaluate = evaluate
        self._unread: collections.deque[tuple[int, Step, StepReport]] = collections.deque()

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
            seconds = self._progress.lap()
            self._watchdog.reset()
            self.stopping |= values.pop("stop") > 0
            self._require_finite(values, done)
            if evaluating and done == step:
                held_out = self.evaluate(step, state)
            self._progress.step(done, batch, values | held_out, seconds)
        return held_out

    def evaluate(self, step: int, state: State) -> dict[str, float]:
        """{"eval_loss": loss} of the held-out examples after `step`; {} if there are none.

        Raises:
          FloatingPointError: it is NaN or infinite.
        """
        values = self._evaluate(state)
        self._require_finite(values, step)
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
