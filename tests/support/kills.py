"""Kills train, generate and convert at random moments, and compares what they end with.

    python -m tests.support.kills FOLDER KINDS COUNT [SEED]

Every command is started again after each SIGKILL until it is through; training saves every step.
Whenever there is an output or a saved step, it must be whole, and the same as without any kill.
The commands run in forks of this process, which has imported everything, so that a start is quick.
"""

import contextlib
import functools
import itertools
import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from alpacare_jax import convert, generate, train  # noqa: F401 - imported before the forks
from alpacare_jax.checkpoints import checkpoint
from tests.support import training
from tests.support.hf_folders import CONFIG, write_hf

STEPS = 10


def fork(action: Callable[[], object], log: Path, seconds: float | None = None) -> bool:
    """Runs `action` in a child process; False if it was killed after `seconds`.

    Raises:
      AssertionError: it failed; the end of the log is the message.
    """
    if not (child := os.fork()):
        with open(log, "a") as file, contextlib.suppress(OSError):
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = 1
        try:
            action()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except Exception:  # noqa: BLE001 - the parent shall see it, whatever it is
            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + (float("inf") if seconds is None else seconds)
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0, log.read_text()[-3000:]
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def command(module: str, *args: str) -> Callable[[], object]:
    """The action that is `python -m alpacare_jax.MODULE ARGS`."""

    def run() -> None:
        sys.argv = [module, *args]
        runpy.run_module(f"alpacare_jax.{module}", run_name="__main__", alter_sys=True)

    return run


def commands(folder: Path, target: Path) -> dict[str, tuple[Callable[[], object], Callable]]:
    """Kind -> what runs, and what compares its output with that of an undisturbed one."""
    saves = {"checkpoint__every_steps": 1, "checkpoint__keep": 2, "train__eval_every": 5}
    _, _, _, *flags = training.command(folder, target, **saves)
    model = folder / "base"

    def same_run(reference: Path, ended: bool) -> None:
        steps = checkpoint.steps_folder(target)
        for step in checkpoint.saved_steps(steps):
            assert checkpoint.problem(steps / str(step)) == ""
        if ended:
            assert json.loads((target / "run.json").read_text())["end"]
            training.assert_same_end(target, reference, STEPS)

    def same_model(reference: Path, _: bool) -> None:
        assert checkpoint.problem(checkpoint.steps_folder(target) / "0") == ""
        assert checkpoint.weights_digest(target, 0) == checkpoint.weights_digest(reference, 0)

    def same_files(reference: Path, _: bool) -> None:
        for file in reference.glob("*.*"):
            if file.name not in ("run.json", "answers.json.run.json"):  # they have times
                assert (target / file.name).read_bytes() == file.read_bytes(), file

    def same_answers(reference: Path, ended: bool) -> None:
        if ended or (target / "answers.json").exists():
            same_files(reference, ended)

    generating = (
        *(f"--checkpoint={model}", f"--input={folder}/train.jsonl"),
        *(f"--output={target}/answers.json", "--max_length=128", "--max_new_tokens=24"),
        *("--batch_size=4", "--generator=tiny"),
    )
    to = f"--target={target}"
    return {
        "train": (command("train", *flags), same_run),
        "generate": (command("generate", *generating), same_answers),
        "from_hf": (command("convert", "from_hf", f"--source={folder}/hf", to), same_model),
        "to_hf": (command("convert", "to_hf", f"--source={model}", to), same_files),
    }


def main(folder: Path, kinds: list[str], count: int, seed: int = 0) -> None:
    """Kills `count` times in all, half of them training if it is asked for; prints how often each.

    Args:
      kinds: of `commands`, in its order.
    """
    chosen, log = random.Random(seed), folder / "log"
    fork(lambda: training.make_corpus(folder), log)
    fork(lambda: write_hf(folder / "hf", CONFIG), log)
    others = itertools.cycle(kind for kind in kinds if kind != "train")
    order = ["train" if i % 2 == 0 and "train" in kinds else next(others) for i in range(count)]
    for kind in kinds:
        reference, target = folder / f"{kind}-whole", folder / f"{kind}-killed"
        for _ in range(2):  # the second one finds its programs in the cache
            shutil.rmtree(reference, ignore_errors=True)
            began = time.monotonic()
            fork(commands(folder, reference)[kind][0], log)
            seconds = time.monotonic() - began
        run, same = commands(folder, target)[kind]
        killed = outputs = 0
        while not outputs or killed < order.count(kind):
            limit = chosen.uniform(0, seconds) if killed < order.count(kind) else None
            ended = fork(run, log, limit)
            if ended or target.exists():
                compare = functools.partial(same, reference, ended)
                fork(compare, log)
            killed += not ended
            # Conversion renames its output as the last thing: a kill may come after that.
            if ended or (kind in ("from_hf", "to_hf") and target.exists()):
                outputs += 1
                shutil.rmtree(target)
        print(f"{kind}: {killed} kills; {outputs} outputs like an undisturbed one's", flush=True)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(parents=True)
    main(where, sys.argv[2].split(","), *map(int, sys.argv[3:]))
