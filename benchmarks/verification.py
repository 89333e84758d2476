"""Claim: verifying a checkpoint takes at most a tenth of the time that loading it does.

    python -m benchmarks.verification [--layers=4] [--folder=DISK_WITH_ROOM]

Makes a model of 7B's kind but a quarter of its width, with random weights in float32: once as
`convert` stores it (a chunk a layer, uncompressed) and once as training saves it, moments included
(Orbax's zstd). `weights` is what `generate` reads, `state` what training resumes from.

From the cache, `load` is all that a command does to get them (metadata, arrays, whether they are
finite), verifying taken off. From the disk, as cold as the kernel obliges, it is Orbax's part
alone, which verifying helps by bringing the files into the cache: `both` is one after the other.
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
from orbax.checkpoint import v1 as ocp

from alpacare_jax.checkpoints import checkpoint, layerwise, saving
from alpacare_jax.model import params
from alpacare_jax.model.config import LlamaConfig
from benchmarks.support import race
from common import cli

TARGET = 0.1
SETTINGS = saving.CheckpointConfig(every_steps=1, keep=1)


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
    with saving.TrainingCheckpoints(folder / "trained", SETTINGS, 0) as saved:
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


def one_round(folder: Path, config: LlamaConfig, cold: bool) -> dict[str, list[float]]:
    """Seconds of verifying, of loading, and of both in a row."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    weights = params.build_tree(
        config,
        lambda weight: jax.ShapeDtypeStruct(
            params.weight_shape(weight, config), jnp.float32, sharding=place
        ),
    )
    state = {"params": weights, "opt_state": {"m": weights, "v": weights}}

    def load_weights(name: str) -> object:
        return checkpoint.load_params(folder / name, config)

    def resume(name: str) -> object:
        with saving.TrainingCheckpoints(folder / name, SETTINGS, 1) as saved:
            return saved.restore(checkpoint.newest_whole(folder / name), state)

    result = {}
    for name, step, part, command in (
        ("converted, weights", 0, "params/", load_weights),
        ("trained, weights", 1, "params/", load_weights),
        ("trained, state", 1, "", resume),
    ):
        model = name.partition(",")[0]
        path = checkpoint.steps_folder(folder / model) / str(step)

        def verify(path=path, part=part) -> None:
            if text := checkpoint.problem(path, part):
                raise ValueError(text)

        def load(path=path, target=state if not part else {"params": weights}) -> object:
            return ocp.load_checkpointables(path, target)

        def measured(*actions: Callable[[], object], path=path) -> float:
            if cold:
                drop_cache(Path(path))
            return sum(seconds(action) for action in actions)

        if cold:
            result[name] = [measured(verify), measured(load), measured(verify, load)]
        else:
            verifying, all_of_it = measured(verify), measured(lambda: command(model))  # noqa: B023
            result[name] = [verifying, all_of_it - verifying, all_of_it]
    return result


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2752, vocab_size=32000,
        num_hidden_layers=FLAGS.layers, num_attention_heads=8,
    )  # fmt: skip
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=FLAGS.folder or None) as name:
        folder = Path(name)
        write(folder, config)
        size = params.count(config) * jnp.dtype(jnp.float32).itemsize / 1e6
        print(f"weights of {size:,.0f} MB, state of {3 * size:,.0f} MB; load {busy:.1f}")
        row = "{:<28}{:>12}{:>12}{:>26}{:>26}".format
        print(row("", "verify, s", "load, s", "verify / load", "both / load"))
        for cold in (False, True):
            rounds = [one_round(folder, config, cold) for _ in range(FLAGS.rounds + 1)][1:]
            for case in rounds[0]:
                verify, load, both = zip(*(r[case] for r in rounds), strict=True)
                shares = [a / b for a, b in zip(verify, load, strict=True)]
                ratios = [a / b for a, b in zip(both, load, strict=True)]
                medians = [f"{statistics.median(times):.3f}" for times in (verify, load)]
                label = f"{case}, {'cold' if cold else 'cached'}"
                print(row(label, *medians, race.spread(shares, 3), race.spread(ratios, 2)))
                if not cold:
                    race.verdict(label, statistics.median(shares), TARGET, at_most=True)


if __name__ == "__main__":
    flags.DEFINE_integer("layers", 4, "Layers of the model.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Times that everything is read.", lower_bound=1)
    flags.DEFINE_string("folder", "", "Where to work; empty takes the temporary folder.")
    cli.run(main)
