"""Claim: a 7B model converts in under 6 GiB of memory, at no less than half the speed of `cp`.

    python -m benchmarks.conversion --variant=llama-7b --folder=DISK_WITH_ROOM

Makes a Hugging Face folder with the variant's real dimensions and random numbers, then converts it
there and back. Each command is a process of its own whose highest resident size is the kernel's
`ru_maxrss`. In every round `cp -r` of the same files runs just before it. Before each, the disk is
idle and what is to be read is dropped from the cache as far as the kernel obliges; `until on disk`
adds a `sync`, which neither command waits for by itself. Both follow the removal of a copy: on a
virtual machine, memory that was free for a while must be had from the host again, which takes as
long as the copying. Ratios within a round count.

Room for three copies of the model is needed: 41 GB for 7B in bfloat16.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from alpacare_jax.formats import hf_weights, safetensors_file
from alpacare_jax.model import config as llama_config
from alpacare_jax.model import params
from benchmarks.support import race
from common import cli

PEAK_TARGET, SPEED_TARGET = 6 * 2**30, 0.5
CLEAN_BITS = {2: (0x83FF, 0x3C00), 4: (0x83FFFFFF, 0x3C000000)}
"""Item size -> bits kept, bits set: any bytes become numbers of 1e-2 or so, never NaN."""


@dataclasses.dataclass
class Run:
    """How one command did."""

    seconds: float
    synced_seconds: float  # until everything is on the disk
    peak_bytes: int


def shape(variant: str, layers: int) -> llama_config.LlamaConfig:
    config = llama_config.VARIANTS[variant]
    layers = layers or config.num_hidden_layers
    return dataclasses.replace(config, num_hidden_layers=layers, bos_token_id=1, eos_token_ids=(2,))


def make_hf(folder: Path, config: llama_config.LlamaConfig, dtype: str) -> None:
    """A Hugging Face folder with random weights, written one tensor at a time."""
    import tokenizers
    from tokenizers import models

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_hf() | {"torch_dtype": dtype}))
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *(f"<{i}>" for i in range(len(special), config.vocab_size))]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(names))

    number = np.dtype(dtype)
    specs = {
        key: (number, params.hf_shape(weight, config))
        for key, (weight, _) in hf_weights.by_key(config).items()
    }
    rng = np.random.default_rng(0)
    keep, put = CLEAN_BITS[number.itemsize]
    with safetensors_file.FolderWriter(folder, specs, safetensors_file.MAX_SHARD_BYTES) as writer:
        for key, spec in specs.items():
            bits = np.frombuffer(rng.bytes(safetensors_file.nbytes(spec)), f"u{number.itemsize}")
            tensor = ((bits & keep) | put).view(number)
            writer.write(key, tensor.reshape(spec[1]))


def digests(folder: Path) -> dict[str, str]:
    """{key: digest of dtype, shape and bytes}, by the safetensors package alone."""
    import safetensors

    result = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="numpy") as file:
            keys = list(file.keys())
        for key in keys:
            with safetensors.safe_open(path, framework="numpy") as file:  # lets mapped pages go
                tensor = file.get_tensor(key)
            digest = hashlib.blake2b(f"{tensor.dtype} {tensor.shape}".encode())
            digest.update(tensor.reshape(-1).view(np.uint8))
            result[key] = digest.hexdigest()
    return result


def run(command: Sequence[str], reads: Path) -> Run:
    """Runs a command from a cold start, as far as an ordinary user can make one."""
    os.sync()
    for path in reads.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    os.sync()
    if process.returncode:
        raise ChildProcessError(f"{' '.join(command)}: exit code {process.returncode}")
    return Run(seconds, time.perf_counter() - start, usage.ru_maxrss * 1024)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def one_round(folder: Path, keep: bool) -> dict[str, Run]:
    """from_hf and to_hf, each just after `cp` of what it reads; `keep` the final folder."""
    ours = [sys.executable, "-m", "alpacare_jax.convert"]
    steps = [
        ("from_hf", folder / "hf", folder / "ours"),
        ("to_hf", folder / "ours", folder / "back"),
    ]
    result = {}
    for name, source, target in steps:
        copy = folder / "copy"
        for _ in range(2):  # the first only so that both contenders follow the removal of a copy
            result[f"cp, {name}"] = run(["cp", "-r", str(source), str(copy)], source)
            shutil.rmtree(copy)
        result[name] = run([*ours, name, f"--source={source}", f"--target={target}"], source)
    shutil.rmtree(folder / "ours")
    if not keep:
        shutil.rmtree(folder / "back")
    return result


def report(rounds: list[dict[str, Run]], total: int, load: float) -> None:
    row = "{:<10}{:>12}{:>26}{:>26}{:>26}".format
    print(row("", "peak", "GB/s", "speed / cp", "the same until on disk"))
    for name in ("from_hf", "to_hf"):
        ours, theirs = ([r[key] for r in rounds] for key in (name, f"cp, {name}"))
        pairs = list(zip(ours, theirs, strict=True))
        speed = [b.seconds / a.seconds for a, b in pairs]
        synced = [b.synced_seconds / a.synced_seconds for a, b in pairs]
        peak = max(run.peak_bytes for run in ours)
        rates = race.spread([total / run.seconds / 1e9 for run in ours], 2)
        print(
            row(name, f"{peak / 1e9:.2f} GB", rates, race.spread(speed, 2), race.spread(synced, 2))
        )
        race.verdict(f"{name}: peak, GiB", peak / 2**30, PEAK_TARGET / 2**30, at_most=True)
        race.verdict(f"{name}: speed / cp", statistics.median(speed), SPEED_TARGET, at_most=False)
    print(f"load before it all: {load:.1f} on {race.cores()} cores")


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    load = os.getloadavg()[0]
    config = shape(FLAGS.variant, FLAGS.layers)
    need = 3 * params.count(config) * np.dtype(FLAGS.dtype).itemsize
    with tempfile.TemporaryDirectory(dir=FLAGS.folder or None) as name:
        folder = Path(name)
        if (free := shutil.disk_usage(folder).free) < need:
            raise OSError(f"{folder} has {free / 1e9:.1f} GB free, {need / 1e9:.1f} GB are needed")
        what = f"{FLAGS.variant}, {config.num_hidden_layers} layers, {FLAGS.dtype}"
        race.log(f"making {what}")
        # In a process of its own: a child's `ru_maxrss` begins at the peak of its parent.
        make = multiprocessing.get_context("spawn").Process(
            target=make_hf, args=(folder / "hf", config, FLAGS.dtype)
        )
        make.start()
        make.join()
        if make.exitcode:
            raise ChildProcessError("making the model failed; see above")
        total, rounds = size(folder / "hf"), []
        for number in range(1, FLAGS.rounds + 1):
            rounds.append(one_round(folder, keep=number == FLAGS.rounds))
            took = ", ".join(f"{name} {run.seconds:.1f} s" for name, run in rounds[-1].items())
            race.log(f"round {number}/{FLAGS.rounds}: {took}")
        print(f"\n{what}: {total / 1e9:.2f} GB of safetensors")
        report(rounds, total, load)
        same = digests(folder / "hf") == digests(folder / "back")
        print(f"every tensor came back with the same bits: {'yes' if same else 'NO'}")


if __name__ == "__main__":
    flags.DEFINE_enum("variant", "llama-7b", list(llama_config.VARIANTS), "Whose dimensions.")
    flags.DEFINE_integer("layers", 0, "So many layers of it only; 0 takes all.", lower_bound=0)
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float16", "float32"], "Of the weights.")
    flags.DEFINE_integer("rounds", 3, "Times each command runs.", lower_bound=1)
    flags.DEFINE_string("folder", "", "Where to work; empty takes the temporary folder.")
    cli.run(main)
