"""All checks that need a GPU, most important first: at most 8 minutes on one H200.

    bash launch/gpu_check.sh [--try] [--generate | --fp8] [FOLDER]     logs: FOLDER, or gpu_check

1. attention: every kernel for GPUs against the definition, and that packed examples stay separate
2. a model of 7B's shape, full fine-tuning in bfloat16 with float32 master weights: that it fits,
   MFU relative to a measured matrix product, and where the time of a step goes by kind of kernel
3. a 1B model, alternating with transformers under torch.compile, without recomputation
4. the same on examples of real lengths, which transformers pads and we pack
5. LoRA on the 7B model, rank 16, its base in bfloat16
6. the 7B model again, by transformers with recomputed layers on the same card

--generate runs generation of a 7B model instead, 5 minutes at most; --fp8 the step of the 7B model
in bfloat16 and in fp8, 4 minutes; --try a tiny model on the CPU, as a check of the installation.
All figures with their targets come last, in one table.

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

TINY = "--anyway --variant=tiny --rows=1 --length=128 --steps=1"


def steps(small: bool, only: str, folder: Path) -> list[Step]:
    """What is run: for a tiny model, or for those of 7B and 1B; `only`: "", --generate or --fp8."""
    cpu = {"JAX_PLATFORMS": "cpu"} if small else {}
    if only == "--generate":
        tiny = "--variant=smollm2-135m --layers=1 --slots=4 --prompts=4 --shrink=16".split()
        rest = tiny if small else []
        return [("generation", 300, cpu, ["-m", "benchmarks.generation_gpu", *rest])]
    on_1b = TINY.split() if small else ["--remat=context"]
    on_7b = TINY.split() if small else ["--variant=llama-7b", "--rows=7", "--steps=2"]
    # By default GPUs round the factors of float32 products to 10 bits.
    exact = {"JAX_PLATFORMS": "cpu" if small else "cuda", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    # Deprecations in the installed versions are no failure here.
    test = "-m pytest -q -p no:cacheprovider -W ignore::DeprecationWarning -k cudnn".split()
    ours = ["-m", "benchmarks.gpu", "--remat=dots", "--rounds=2"]
    on_7b = [*ours, *on_7b, "--accumulation=4", "--alone"]
    alone, profile = "--skip=eager,compile", f"--profile={folder}/profile"
    if only == "--fp8":
        fp8 = [*on_7b, alone, "--config.train.fp8=True", "--least=0.87", profile]
        return [
            ("llama-7b", 90, cpu, [*on_7b, alone, "--least=0.7"]),
            ("fp8-7b", 120, cpu, fp8),
        ]
    real = [f"--examples={8 if small else 128}", "--skip=compile", "--ratio=4"]
    return [
        ("attention", 50, exact, [*test, "tests/alpacare_jax/model/test_attention.py"]),
        ("llama-7b", 90, cpu, [*on_7b, alone, "--least=0.7", profile]),
        ("llama-1b", 100, cpu, [*ours, *on_1b, f"--skip=eager{',compile' * small}"]),
        ("real-lengths", 60, cpu, [*ours, *on_1b, *real]),
        ("lora-7b", 60, cpu, [*on_7b, alone, "--lora=16"]),
        ("torch-7b", 120, cpu, [*on_7b, "--skip=compile", "--checkpointing", "--ratio=1.6"]),
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


def verdicts(log: Path) -> list[str]:
    """The lines of a benchmark that hold its speed, or a figure beside its target."""
    return [
        line
        for line in log.read_text(errors="replace").splitlines()
        if ", target " in line or "tokens/s" in line
    ]


def main(arguments: list[str]) -> None:
    if arguments[:1] in (["--help"], ["-h"]):
        print((__doc__ or "").strip())
        return
    began = time.monotonic()
    options = [word for word in arguments if word in ("--try", "--generate", "--fp8")]
    words = [word for word in arguments if word not in options] or ["gpu_check"]
    small, chosen = "--try" in options, {*options} - {"--try"}
    if len(chosen) > 1:
        print("error: --generate and --fp8 are calls of their own; give one", file=sys.stderr)
        sys.exit(2)
    only = "".join(chosen)
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
    failed, figures = [], []
    for name, seconds, env, rest in steps(small, only, folder):
        command = ["timeout", "--kill-after=20", str(seconds), sys.executable, *rest]
        print(f"== {name} ({time.monotonic() - began:.0f} s): {shlex.join(command)}", flush=True)
        if not succeeds(command, env, folder / f"{name}.log"):
            failed.append(name)
        figures += [f"{name:14}{line}" for line in verdicts(folder / f"{name}.log")]
    print("== figures", *figures, sep="\n")
    if failed:
        sys.exit(f"FAILED: {' '.join(failed)}; logs are in {folder}")
    print(f"all steps succeeded in {time.monotonic() - began:.0f} s; logs are in {folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
