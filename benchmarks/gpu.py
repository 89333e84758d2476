"""Claim: training on a GPU reaches half of what its matrix products reach.

    python -m benchmarks.gpu                                    1B, Llama 3.2's shape
    python -m benchmarks.gpu --variant=llama-7b --remat=full --checkpointing --alone

Our real training step in bfloat16 with float32 master weights, random ones, on rows full of one
example each; with --examples=N on N examples of real lengths, which we pack, and transformers pads
to the longest of --rows. Model FLOPs utilisation = metrics.train_flops / time / the peak that
metrics.measure_peak_flops finds on the same GPU just before; recomputation does not count. Where
torch sees the GPU, transformers' model takes turns: autocast to bfloat16, AdamW(fused), eager and
under torch.compile, without rematerialisation unless --checkpointing. Where memory is too small for
all of them at once, --alone races each by itself, one after the other; one that fails is left out.
Memory is the GPU's. One GPU is used.

Targets: --least of the peak, and --ratio times the faster of theirs. Without a GPU it prints one
line and ends.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from alpacare_jax.data import encoding
from alpacare_jax.model.config import VARIANTS
from benchmarks.support import kernels, models, race
from common import cli

LENGTHS = (45, 66, 74, 82, 93, 107, 124, 140, 161, 196, 720)
"""Deciles of the tokens of an example: the first 5,000 of Alpaca-52k with their template, in a
vocabulary of 32,000; their mean is 123."""


def setting():
    """The model's shape, the step's examples, and the step as our training gets it."""
    from alpacare_jax.data import batches

    FLAGS = flags.FLAGS
    shape = VARIANTS[FLAGS.variant]
    if FLAGS.layers:
        shape = dataclasses.replace(shape, num_hidden_layers=FLAGS.layers)
    rng = np.random.default_rng(0)
    lengths = np.full(FLAGS.rows * FLAGS.accumulation, FLAGS.length)
    if FLAGS.examples:
        deciles = np.linspace(0, 1, len(LENGTHS))
        lengths = np.interp(rng.random(FLAGS.examples), deciles, LENGTHS).round().astype(int)
        lengths = np.minimum(lengths, FLAGS.length)
    examples = [rng.integers(3, shape.vocab_size, n).astype(np.int32) for n in lengths]
    batcher = batches.Batcher(
        [encoding.EncodedExample(example, prompt_length=1) for example in examples],
        batch_size=len(examples),
        seed=0,
        max_length=FLAGS.length,
        max_row_length=FLAGS.length,
        row_multiple=FLAGS.length,
        row_groups=1,
        microbatch_tokens=FLAGS.rows * FLAGS.length,
        bounds=True,
    )
    return shape, examples, batcher.batch(0)


def ours() -> race.Work:
    import jax

    from alpacare_jax.training import metrics

    FLAGS = flags.FLAGS
    peak = metrics.measure_peak_flops(seconds=2.0)
    shape, _, batch = setting()
    model = {"variant": FLAGS.variant, "dtype": "bfloat16", "loss_tokens": FLAGS.loss_tokens}
    if FLAGS.remat:
        model["remat"] = FLAGS.remat
    changes = {"model": model, "train": {"microbatch_tokens": FLAGS.rows * FLAGS.length}}
    config = models.run_config(FLAGS.config, lora={"rank": FLAGS.lora}, **changes)
    training = models.OurTraining(config, shape, random=True)
    adapter = config.lora.adapter(shape) if FLAGS.lora else None
    sizes = batch.num_tokens, batch.num_pairs, batch.num_targets, adapter
    facts = {
        "peak_flops": peak,
        "flops": FLAGS.steps * metrics.train_flops(shape, *sizes),
        "tokens": FLAGS.steps * batch.num_tokens,
        "device": jax.devices()[0].device_kind,
    }

    def work() -> race.Result:
        loss = [training.step(batch) for _ in range(FLAGS.steps)][-1]
        if FLAGS.profile and not os.path.exists(FLAGS.profile):
            with jax.profiler.trace(FLAGS.profile):  # in the warm-up: no round counts it
                training.step(batch), training.step(batch)
        memory = jax.devices()[0].memory_stats()  # None on CPU
        used = {"peak_bytes": memory["peak_bytes_in_use"]} if memory else {}
        return {"loss": loss} | facts | used

    return work


def theirs(options: dict[str, object] | None) -> race.Work:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    FLAGS = flags.FLAGS
    shape, examples, _ = setting()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig.from_dict(shape.to_hf()))
    if FLAGS.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    training = models.TorchTraining(model.float(), options, autocast=True)
    micro = [
        models.padded(examples[i : i + FLAGS.rows]) for i in range(0, len(examples), FLAGS.rows)
    ]

    def work() -> race.Result:
        loss = [training.step(micro) for _ in range(FLAGS.steps)][-1]
        used = {"peak_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {}
        return {"loss": loss} | used

    return work


CONTENDERS = {
    "ours": ours,
    "torch eager": lambda: theirs(None),
    "torch.compile": lambda: theirs({}),
}


def sees_gpu(code: str) -> bool:
    """What a Python process of its own prints, so that this one takes no memory on the GPU."""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return answer.stdout.strip() in ("gpu", "True")


def compare(names: Sequence[str]) -> list[race.Contender]:
    """Ours must finish; failures of the others are reported."""
    FLAGS = flags.FLAGS
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # the older name; JAX refuses both
        # Else three quarters. Not grown as needed: XLA tries kernels out, and would take minutes.
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.95" if FLAGS.alone else "0.45")
    contenders = []
    for together in [[name] for name in names] if FLAGS.alone else [names]:
        contenders += race.run(
            "benchmarks.gpu", together, rounds=FLAGS.rounds, warm_ups=2, optional=names[1:]
        )
    return contenders


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    if FLAGS.worker:
        race.serve(CONTENDERS[FLAGS.worker])
        return
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if not FLAGS.anyway and not sees_gpu("import jax; print(jax.default_backend())"):
        print("skipped: jax sees no GPU here")
        return
    names = ["ours"]
    if FLAGS.anyway or sees_gpu("import torch; print(torch.cuda.is_available())"):
        names = race.left(CONTENDERS, FLAGS.skip)
    else:
        print("torch sees no GPU: no comparison")
    contenders = compare(names)
    facts = contenders[0].first

    def utilisation(seconds, _):
        return 100 * facts["flops"] / seconds / facts["peak_flops"]

    title = (
        f"training step, {FLAGS.variant}, {FLAGS.layers or 'all'} layers, {FLAGS.accumulation} x "
        f"{FLAGS.rows} x {FLAGS.length} tokens, {FLAGS.examples or 'full'} examples, "
        f"{'fp8' if FLAGS.config.train.fp8 else 'bfloat16'}, {facts['device']}, "
        f"bfloat16 peak {facts['peak_flops'] / 1e12:.0f} TFLOP/s"
    )
    race.report(title, contenders, "MFU %", utilisation)
    seconds = statistics.median(contenders[0].seconds)
    print(f"ours: {facts['tokens'] / seconds:,.0f} tokens/s without padding")
    ended = [contender for contender in contenders if not contender.failure]
    print("last loss:", ", ".join(f"{x.name} {x.results[-1]['loss']:.3f}" for x in ended))
    share = statistics.median(utilisation(seconds, None) for seconds in contenders[0].seconds) / 100
    if FLAGS.profile and Path(FLAGS.profile).exists() and not FLAGS.anyway:
        print("\n".join(kernels.table(*kernels.kernels(Path(FLAGS.profile)))))
    race.verdict("MFU", share, FLAGS.least, at_most=False)
    if others := [contender for contender in contenders[1:] if not contender.failure]:
        fastest = min(others, key=lambda contender: statistics.median(contender.seconds))
        ratio = statistics.median(race.ratios(contenders[0], fastest, utilisation))
        race.verdict(f"ours / {fastest.name}", ratio, FLAGS.ratio, at_most=False)


if __name__ == "__main__":
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", "configs/alpacare.py:llama-7b", "Our settings.")
    flags.DEFINE_string("variant", "llama3.2-1b", "Shape: a key of VARIANTS.")
    flags.DEFINE_integer("layers", 0, "Fewer layers than the variant has; 0: all.")
    flags.DEFINE_integer("rows", 8, "Rows of a micro-batch.", lower_bound=1)
    flags.DEFINE_integer("length", 1024, "Tokens of a row.", lower_bound=2)
    flags.DEFINE_integer("accumulation", 1, "Micro-batches of a step.", lower_bound=1)
    flags.DEFINE_integer("examples", 0, "Examples of real lengths in a step; 0: full rows.")
    flags.DEFINE_integer("lora", 0, "Rank of an adapter, the base frozen; 0: full fine-tuning.")
    flags.DEFINE_integer("loss_tokens", 2048, "Tokens whose logits are held at a time.")
    flags.DEFINE_integer("steps", 10, "Steps of a round.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Times each contender works.", lower_bound=1)
    flags.DEFINE_string("remat", "", "Our rematerialisation policy; the config's by default.")
    flags.DEFINE_bool("checkpointing", False, "transformers recomputes layers, too.")
    flags.DEFINE_bool("alone", False, "Each contender has the GPU's memory for itself.")
    flags.DEFINE_string("profile", "", "Folder for a trace of two of our steps; it must not exist.")
    flags.DEFINE_float("least", 0.5, "Target: model FLOPs utilisation.")
    flags.DEFINE_float("ratio", 1.25, "Target: ours relative to the faster of theirs.")
    flags.DEFINE_list("skip", [], "Leave contenders out by a word: compile, which takes minutes.")
    flags.DEFINE_bool("anyway", False, "Run without a GPU, to try the script with --variant=tiny.")
    flags.DEFINE_string("worker", "", "Internal.")
    cli.run(main)
