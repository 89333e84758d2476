"""Claim: verifying a checkpoint takes at most a tenth of the time that loading it does.

    python -m benchmarks.verification [--layers=4] [--folder=DISK_WITH_ROOM]

Makes a model of 7B's kind but a quarter of its width, with random weights in float32: once as
`convert` stores it (a chunk a layer, uncompressed) and once as training saves it, moments included
(Orbax's zstd). In every round each is verified and loaded, in this order, once with what is read
dropped from the cache as far as the kernel obliges, once from the cache. `weights` is what
`generate` reads, `state` what training resumes from.

Verifying brings files into the cache, from which they are loaded then. So what a command takes is
given too: verifying and loading in a row, divided by loading alone.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from alpacare_jax.checkpoints import checkpoint, layerwise, saving
from alpacare_jax.model import params
from alpacare_jax.model.config import LlamaConfig
from benchmarks.support import race
from common import cli

TARGET = 0.1


def write(folder: Path, config: LlamaConfig) -> None:
    """`converted`, and `trained` with two moments a weight."""
    weights = params.init(config, jax.random.key(0))
    dtypes = {weight.path: np.dtype(np.float32) for weight in params.weight_specs(config)}
    (folder / "converted").mkdir()
    with layerwise.Writer(folder / "converted", config, dtypes) as store:
        for weight in params.weight_specs(config):
            array = np.asarray(params.flatten(weights)[weight.path])
            for layer in range(len(array)) if weight.stacked else [None]:
                store.write(weight, layer, array if layer is None else array[layer])
    state = {"params": weights, "opt_state": {"m": weights, "v": weights}}
    settings = saving.CheckpointConfig(every_steps=1, keep=1)
    with saving.TrainingCheckpoints(folder / "trained", settings, 0) as saved:
        saved.save(1, state, {})


def drop_cache(folder: Path) -> None:
    """As far as an ordinary user can."""
    os.sync()
    for path in filter(Path.is_file, folder.rglob("*")):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(action())
    return time.perf_counter() - start


def one_round(folder: Path, config: LlamaConfig, cold: bool) -> dict[str, tuple[float, float]]:
    """Seconds of verifying, and of loading without it."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    weights = params.build_tree(
        config,
        lambda weight: jax.ShapeDtypeStruct(
            params.weight_shape(weight, config), jnp.float32, sharding=place
        ),
    )
    state = {"params": weights, "opt_state": {"m": weights, "v": weights}}
    settings = saving.CheckpointConfig(every_steps=1, keep=1)

    def verify(model: str, step: str, part: str) -> None:
        if text := checkpoint.problem(checkpoint.steps_folder(folder / model) / step, part):
            raise ValueError(text)

    def resume() -> object:
        with saving.TrainingCheckpoints(folder / "trained", settings, 1) as saved:
            return saved.restore(checkpoint.newest_whole(folder / "trained"), state)

    result = {}
    for name, model, check, load in (
        (
            "converted, weights",
            "converted",
            lambda: verify("converted", "0", "params/"),
            lambda: checkpoint.load_params(folder / "converted", config),
        ),
        (
            "trained, weights",
            "trained",
            lambda: verify("trained", "1", "params/"),
            lambda: checkpoint.load_params(folder / "trained", config),
        ),
        ("trained, state", "trained", lambda: verify("trained", "1", ""), resume),
    ):
        times = []
        for action in (check, load):
            if cold:
                drop_cache(folder / model)
            times.append(seconds(action))
        result[name] = times[0], times[1] - (0 if cold else times[0])
    return result


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2752, vocab_size=32000,
        num_hidden_layers=FLAGS.layers, num_attention_heads=8,
    )  # fmt: skip
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=FLAGS.folder or None) as name:
        folder = Path(name)
        write(folder, config)
        size = params.count(config) * jnp.dtype(jnp.float32).itemsize / 1e6
        print(f"weights of {size:,.0f} MB, state of {3 * size:,.0f} MB; load {load:.1f}")
        row = "{:<28}{:>12}{:>12}{:>26}".format
        print(row("", "verify, s", "load, s", "verify / load"))
        for cold in (False, True):
            rounds = [one_round(folder, config, cold) for _ in range(FLAGS.rounds + 1)][1:]
            for case in rounds[0]:
                verify, loading = ([r[case][i] for r in rounds] for i in range(2))
                shares = [a / b for a, b in zip(verify, loading, strict=True)]
                medians = [f"{statistics.median(times):.3f}" for times in (verify, loading)]
                label = f"{case}, {'cold' if cold else 'cached'}"
                print(row(label, *medians, race.spread(shares, 3)))
                race.verdict(label, statistics.median(shares), TARGET, at_most=True)


if __name__ == "__main__":
    flags.DEFINE_integer("layers", 4, "Layers of the model.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Times that everything is read.", lower_bound=1)
    flags.DEFINE_string("folder", "", "Where to work; empty takes the temporary folder.")
    cli.run(main)
