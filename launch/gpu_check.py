"""All checks that need a GPU, in one call of about 10 minutes on one H200.

    bash launch/gpu_check.sh [--try] [FOLDER]     logs go to FOLDER (default gpu_check)

1. attention: cuDNN against the definition, and that packed examples stay separate
2. a model of 7B's shape, full fine-tuning in bfloat16 with float32 master weights: that it fits,
   MFU relative to a measured matrix product, then transformers with torch on the same card, also
   with recomputed layers; FOLDER/profile gets a trace of two of our steps
3. the same for a 1B model, alternating with torch, eager and compiled, without recomputation

--try runs the same steps for a tiny model on the CPU, as a check of the installation.

Uses $PYTHON, by default python3, with the packages of setup.py, jax[cuda13] and pytest; for the
comparison torch with CUDA and transformers. Installs nothing.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

Step = tuple[str, int, dict[str, str], Sequence[str]]
"""Name, seconds, environment, arguments for Python."""

TINY = "--anyway --variant=tiny --rows=1 --length=128 --steps=1 --skip=compile"


def steps(small: bool, folder: Path) -> list[Step]:
    """What is run: for a tiny model, or for those of 7B and 1B."""
    on_1b = TINY.split() if small else []
    on_7b = ["--remat=full", "--accumulation=4"]
    on_7b += on_1b or ["--variant=llama-7b", "--steps=2", f"--profile={folder}/profile"]
    # By default GPUs round the factors of float32 products to 10 bits.
    exact = {"JAX_PLATFORMS": "cpu" if small else "cuda", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    # Deprecations in the installed versions are no failure here.
    test = "-m pytest -q -p no:cacheprovider -W ignore::DeprecationWarning".split()
    bench = ["-m", "benchmarks.gpu"]
    cpu = {"JAX_PLATFORMS": "cpu"} if small else {}
    alone = ["--rounds=3", "--alone", "--checkpointing", "--skip=compile"]
    return [
        ("attention", 240, exact, [*test, "tests/alpacare_jax/model/test_attention.py"]),
        ("llama-7b", 480, cpu, [*bench, *on_7b, *alone]),
        ("llama-1b", 420, cpu, [*bench, *on_1b, "--rounds=3"]),
    ]


def succeeds(command: list[str], env: dict[str, str], log: Path) -> bool:
    """Runs a command; what it prints is shown and kept."""
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            for stream in (file, sys.stdout.buffer):
                stream.write(line)
                stream.flush()
    return process.returncode == 0


def main(arguments: list[str]) -> None:
    if arguments[:1] in (["--help"], ["-h"]):
        print((__doc__ or "").strip())
        return
    began = time.monotonic()
    small = arguments[:1] == ["--try"]
    words = arguments[small:] or ["gpu_check"]
    if len(words) > 1 or words[0].startswith("-"):
        error = f"error: unknown argument '{words[-1]}'; see gpu_check.sh --help"
        print(error, file=sys.stderr)
        sys.exit(2)
    folder = Path(words[0])
    folder.mkdir(parents=True, exist_ok=True)
    # In a process of its own, which does not keep the GPU.
    check = [sys.executable, "-m", "launch.gpu_packages", str(int(small))]
    if subprocess.run(check).returncode:
        sys.exit(1)
    failed = []
    for name, seconds, env, rest in steps(small, folder):
        command = ["timeout", "--kill-after=20", str(seconds), sys.executable, *rest]
        print(f"== {name} ({time.monotonic() - began:.0f} s): {shlex.join(command)}", flush=True)
        if not succeeds(command, env, folder / f"{name}.log"):
            failed.append(name)
    if failed:
        sys.exit(f"FAILED: {' '.join(failed)}; logs are in {folder}")
    print(f"all steps succeeded in {time.monotonic() - began:.0f} s; logs are in {folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
