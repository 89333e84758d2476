"""Trains as `python -m alpacare_jax.train` does, but a process sends itself a signal on the way.

    python -m tests.support.interrupted_train NOTE FLAGS...

NOTE is a file that says which process does so, after which step, the signal, and how many seconds
later, as in `1 4 SIGKILL 0.1`. Where the signal comes does not depend on how fast the machine is.
The note is deleted by whom it concerns: a run that starts again is left alone.
"""

import os
import runpy
import signal
import sys
import threading
from pathlib import Path

from alpacare_jax.training import progress


def interrupt(note: Path) -> None:
    """Makes this process heed the note, if it is there and meant for it."""
    if not note.exists():
        return
    process, last, name, delay = note.read_text().split()
    if process != os.environ.get("JAX_PROCESS_ID", "0"):
        return
    report = progress.TrainingProgress.step

    def report_and_interrupt(self, step, *rest):
        report(self, step, *rest)
        if step == int(last):
            note.unlink()
            kill = (os.getpid(), signal.Signals[name])
            if float(delay):
                threading.Timer(float(delay), os.kill, kill).start()
            else:
                os.kill(*kill)  # at this very step

    progress.TrainingProgress.step = report_and_interrupt


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as python -m has it: where configs lie
    interrupt(Path(sys.argv.pop(1)))
    runpy.run_module("alpacare_jax.train", run_name="__main__", alter_sys=True)
