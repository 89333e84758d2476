"""The training run: its mathematics on any mesh, its restarts, its reports."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from alpacare_jax import train
from alpacare_jax.checkpoints import checkpoint, model_folder
from alpacare_jax.data.batches import Batcher
from alpacare_jax.data.encoding import EncodedExample
from alpacare_jax.distributed import processes, sharding
from alpacare_jax.model import llama, params
from alpacare_jax.model.config import VARIANTS
from alpacare_jax.training import metrics, optimizers, train_step
from alpacare_jax.training.config import RunConfig
from common import provenance, sections
from configs import quickstart
from tests.conftest import COMPILES_QUICKLY, REPOSITORY, make_model, write_examples

pytestmark = pytest.mark.usefixtures("quickly_compiled")
TINY = VARIANTS["tiny"]
GOLDEN = REPOSITORY / "tests/golden"


# A small run. test_checkpoint.py uses these too.


def settings(folder: Path, **changes) -> dict:
    """What a run on the files of `make_corpus` changes in the quickstart's config: 10 steps."""
    return {
        "model.checkpoint": str(folder / "base"),
        "model.variant": "tiny",
        "model.loss_tokens": 64,
        "data.path": str(folder / "train.jsonl"),
        "data.eval_path": str(folder / "eval.jsonl"),
        "data.max_length": 512,
        "data.max_row_length": 512,
        "data.overlong": "error",
        "data.row_multiple": 512,  # one shape, hence one compilation: see microbatch_tokens
        "optimizer.learning_rate": 1e-3,
        "optimizer.warmup_ratio": 0.1,
        "train.batch_size": 8,
        "train.epochs": 2,
        "train.log_every": 2,
        "train.microbatch_tokens": 512,
    } | {key.replace("__", "."): value for key, value in changes.items()}


def run_config(folder: Path, **changes) -> RunConfig:
    config = quickstart.get_config()
    config.update_from_flattened_dict(settings(folder, **changes))
    return sections.build(RunConfig, config.to_dict())


@functools.cache
def make_corpus(folder: Path) -> Path:
    """A tiny model and its examples, the same ones for every test module."""
    make_model(folder / "base", TINY)
    write_examples(folder / "train.jsonl", 40)
    write_examples(folder / "eval.jsonl", 6)
    return folder


@contextlib.contextmanager
def small_machine():
    """One device, a peak that needs no measuring, and SIGTERM as it was afterwards."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)  # the mesh covers the first device only
        patch.setattr(metrics, "peak_flops", lambda: (1e12, "table"))
        yield patch
    signal.signal(signal.SIGTERM, handler)


@functools.cache
def _compiled(key: str) -> list:
    return []


def compile_once(patch: pytest.MonkeyPatch) -> None:
    """Lets runs of the same config share their compiled steps."""
    make_steps = train_step.make_steps

    def cached(shape, config, update, mesh):
        loop = dataclasses.replace(config.train, log_every=1, eval_every=0, tensorboard=False)
        examples = dataclasses.replace(config.data, path=provenance.sha256(config.data.path))
        key = repr((shape, config.model, config.optimizer, loop, examples, mesh))
        if not (steps := _compiled(key)):
            steps.extend(make_steps(shape, config, update, mesh))
        return tuple(steps)

    patch.setattr(train_step, "make_steps", cached)


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def curve(workdir: Path) -> list[tuple]:
    """What must not depend on restarts."""
    keys = ("step", "loss", "grad_norm", "learning_rate", "real_token_share", "eval_loss")
    return [tuple(line.get(key) for key in keys) for line in lines(workdir)]


def saved_state(workdir: Path, step: int) -> dict[str, np.ndarray]:
    content = ocp.load_checkpointables(workdir / "checkpoints" / str(step))
    leaves = jax.tree_util.tree_leaves_with_path(
        {name: content[name] for name in ("params", "opt_state")}
    )
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_end(workdir: Path, reference: Path, step: int) -> None:
    assert curve(workdir) == curve(reference)
    ours, theirs = saved_state(workdir, step), saved_state(reference, step)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 3 * len(params.weight_specs(TINY))
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.getbasetemp() / "corpus")


def record_reads(patch: pytest.MonkeyPatch) -> set[str]:
    """Collects the config keys that the package itself reads: `asdict` for run.json is no use."""
    read, package = set(), str(Path(train.__file__).parent)
    for section in dataclasses.fields(RunConfig):
        if not dataclasses.is_dataclass(section.type):
            continue

        def getattribute(self, name, section=section.name):
            if sys._getframe(1).f_code.co_filename.startswith(package):
                read.add(f"{section}.{name}")
            return object.__getattribute__(self, name)

        patch.setattr(section.type, "__getattribute__", getattribute, raising=False)
    return read


class Rules(dict):
    """Sharding rules that remember which were looked up."""

    def __init__(self, *args):
        super().__init__(*args)
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)


def ten_steps(folder: Path, **changes) -> RunConfig:
    """The run that the tests of restarts interrupt: its steps are of two shapes."""
    held_out = {"data__eval_path": "", "data__eval_share": 0.15, "train__eval_every": 2}
    steps = {"train__batch_size": 6, "train__microbatch_tokens": 1024}
    return run_config(folder, **held_out | steps | changes)


@functools.cache
def finished_run(corpus: Path) -> SimpleNamespace:
    """A whole run of 10 steps that nothing disturbs, and what was seen while it ran."""
    _compiled.cache_clear()  # the model's settings are read while it is traced
    workdir = corpus / "finished"
    board = importlib.util.find_spec("tensorboardX") is not None
    config = ten_steps(corpus, train__tensorboard=board, checkpoint__every_steps=4)
    rules = Rules(config.sharding.rules)
    config = dataclasses.replace(config, sharding=dataclasses.replace(config.sharding, rules=rules))
    with (
        small_machine() as patch,
        open(corpus / "out", "w") as out,
        open(corpus / "err", "w") as err,
    ):
        compile_once(patch)
        make, steps_of_schedule = optimizers.make, []
        patch.setattr(
            optimizers,
            "make",
            lambda recipe, steps, *of_weights: (
                steps_of_schedule.append(steps) or make(recipe, steps, *of_weights)
            ),
        )
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        read = record_reads(patch)
        train.run(config, workdir)
    return SimpleNamespace(
        config=config,
        workdir=workdir,
        read=read,
        steps_of_schedule=steps_of_schedule,
        out=(corpus / "out").read_text(),
        err=(corpus / "err").read_text(),
    )


@pytest.fixture(scope="module")
def finished(corpus) -> SimpleNamespace:
    return finished_run(corpus)


def stopped_run(corpus: Path, workdir: Path, step: int, **changes) -> RunConfig:
    """Makes a workdir whose run was asked to stop as it gave the devices step `step`.

    A checkpoint is due there, so the run waits for that very step; else it stops one step later.
    """
    config = ten_steps(corpus, **{"checkpoint__every_steps": step} | changes)

    class AskedAtStep(contextlib.nullcontext):
        looks, interrupted = 0, False

        @property
        def asked(self):
            self.looks += 1
            return self.looks >= step

    with small_machine() as patch:
        compile_once(patch)
        patch.setattr(train, "StopRequest", AskedAtStep)
        train.run(config, workdir)
    return config


def go_on(config: RunConfig, workdir: Path) -> None:
    with small_machine() as patch:
        compile_once(patch)
        train.run(config, workdir)


# What a run leaves behind.


def test_every_config_key_is_read(finished):
    known = {
        f"{section.name}.{key.name}"
        for section in dataclasses.fields(RunConfig)
        if dataclasses.is_dataclass(section.type)
        for key in dataclasses.fields(section.type)
    }
    assert sorted(known - finished.read) == []
    rules = finished.config.sharding.rules
    assert sorted(rules.keys() - rules.read) == []


def test_metrics_are_all_there_and_finite(finished):
    steps = lines(finished.workdir)
    assert [line["step"] for line in steps] == list(range(11))
    always = {"loss", "grad_norm", "learning_rate", "tokens_per_second", "real_token_share"}
    always |= {"mfu", "seconds"}
    rate = optimizers.schedule(finished.config.optimizer, 10)
    assert finished.steps_of_schedule == [10], "what is logged is what is applied"
    for line in steps:
        extra = {"eval_loss"} if line["step"] % 2 == 0 else set()
        extra |= {"save_stall_seconds"} if line["step"] in (5, 9) else set()  # saved before: 4, 8
        assert line.keys() == {"step"} | extra | (always if line["step"] else set())
        assert all(math.isfinite(value) for value in line.values())
        if line["step"]:
            assert line["learning_rate"] == pytest.approx(float(rate(line["step"] - 1)))
            assert 0 < line["real_token_share"] <= 1
            assert min(line[key] for key in always - {"learning_rate"}) > 0


def test_loss_falls_and_the_best_is_kept(finished):
    held_out = {line["step"]: line["eval_loss"] for line in lines(finished.workdir)[::2]}
    assert held_out[10] < held_out[0] - 0.1
    assert list(held_out.values()) == sorted(held_out.values(), reverse=True)
    assert checkpoint.find_step(finished.workdir, "best") == min(held_out, key=held_out.get)
    kept = sorted(path.name for path in (finished.workdir / "checkpoints").iterdir())
    assert kept == ["10"]


def test_progress_goes_to_stderr(finished):
    assert finished.out == ""
    assert "34 examples, 10 steps of 6 (2 epochs; 4 examples sit out each), 1 of them warm-up" in (
        finished.err
    )
    assert "step 0/10 | held-out loss 6." in finished.err
    for step in (1, 2, 4, 6, 8, 10):
        assert finished.err.count(f"\nstep {step}/10 | loss ") == 1
    assert "step 3/10" not in finished.err
    assert "finished in" in finished.err


def test_run_json_explains_the_run(finished):
    record = json.loads((finished.workdir / "run.json").read_text())
    assert record["config"] == json.loads(json.dumps(dataclasses.asdict(finished.config)))
    assert {"git_commit", "python", "packages", "host", "start", "data"} <= record.keys()
    assert record["packages"]["jax"] == jax.__version__
    assert record["end"] >= record["start"]


def test_the_workdir_is_a_model_directory(finished):
    shape = model_folder.read_config(finished.workdir)
    assert shape == TINY
    model_folder.load_tokenizer(finished.workdir)
    weights = params.flatten(checkpoint.load_params(finished.workdir, shape))
    state = saved_state(finished.workdir, 10)
    for name, array in weights.items():
        key = "['params']" + "".join(f"['{part}']" for part in name.split("."))
        np.testing.assert_array_equal(array, state[key])


def test_tensorboard_files(finished):
    pytest.importorskip("tensorboardX")
    (file,) = (finished.workdir / "tensorboard").iterdir()
    content = file.read_bytes()
    for name in (b"loss", b"eval_loss", b"mfu", b"learning_rate"):
        assert name in content


def test_a_finished_run_does_nothing_more(finished, capsys):
    before = (finished.workdir / "metrics.jsonl").read_bytes()
    with small_machine() as patch:
        patch.setattr(train_step, "make_steps", None)
        train.run(finished.config, finished.workdir)
    assert "is finished: 10 steps" in capsys.readouterr().err
    ended = json.loads((finished.workdir / "run.json").read_text())
    (finished.workdir / "run.json").write_text(json.dumps(ended | {"end": None}))
    with small_machine():  # killed between its last save and the note of its end
        train.run(finished.config, finished.workdir)
    again = json.loads((finished.workdir / "run.json").read_text())
    assert again["end"] and again | {"end": None} == ended | {"end": None}
    assert (finished.workdir / "metrics.jsonl").read_bytes() == before


def test_the_log_says_where_the_time_went(finished):
    (line,) = (text for text in finished.err.splitlines() if text.startswith("first step after"))
    phases = ("imports and devices", "data", "weights", "held-out loss", "first step")
    assert all(f"{name} " in line for name in phases) and "compiling took" in line
    assert "attention by xla" in finished.err
    assert finished.err.count("is being saved; the run stood still for") == 3  # steps 4, 8, 10


def test_a_trace_of_the_steps_asked_for(corpus, tmp_path):
    config = dataclasses.replace(ten_steps(corpus), profile="3,4")
    with small_machine() as patch:
        compile_once(patch)
        train.run(config, tmp_path)
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000
    assert_same_end(tmp_path, finished_run(corpus).workdir, 10)


@pytest.mark.parametrize(("profile", "traces"), [("2,6", 0), ("9,20", 1)])
def test_a_trace_that_the_run_does_not_hold_whole(corpus, finished, tmp_path, profile, traces):
    """Begun before the restart, it is left out; it ends with the run."""
    config = stopped_run(corpus, tmp_path, step=4)
    go_on(dataclasses.replace(config, profile=profile), tmp_path)
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == traces
    assert_same_end(tmp_path, finished.workdir, 10)


@pytest.mark.parametrize("profile", ["10", "5,3", "0,2", "a,b", "1,2,3", "-1,2"])
def test_steps_that_cannot_be_traced(corpus, profile):
    with pytest.raises(ValueError, match="give first and last step, as in 10,15"):
        dataclasses.replace(ten_steps(corpus), profile=profile)


# Mathematics.


EXAMPLES = [
    EncodedExample((7 * i + 3 * np.arange(length) ** 2) % 500 + 3, 2 + i)
    for i, length in enumerate([70, 40, 15, 60, 50, 12, 90, 25, 33, 20])
]
"""They pack into 4 rows of 128 with 2 or 3 in each."""


def batcher(examples, batch_size, row_groups=1, microbatch_tokens=256, max_length=128) -> Batcher:
    return Batcher(
        examples,
        batch_size,
        seed=1,
        max_length=max_length,
        max_row_length=max_length,
        row_multiple=128,
        row_groups=row_groups,
        microbatch_tokens=microbatch_tokens,
    )


def hand_made_weights() -> llama.Params:
    """Weights without a random number: sines of squares for matrices, a slope for norms."""
    rows = {weight.path: i for i, weight in enumerate(params.WEIGHTS)}

    def leaf(weight):
        shape = params.weight_shape(weight, TINY)
        size = math.prod(shape)
        if weight.init == "ones":
            return jnp.asarray(np.linspace(0.8, 1.2, size).reshape(shape), jnp.float32)
        wave = np.sin(np.linspace(0, 100 + rows[weight.path], size) ** 2)
        return jnp.asarray(0.06 * wave.reshape(shape), jnp.float32)

    return params.build_tree(TINY, leaf)


MODEL = run_config(Path()).model
HOW = run_config(Path()).sharding
ONE_DEVICE = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)


@functools.cache
def gradient_of_micro():
    def loss(weights, micro):
        return train_step.mean_loss(weights, micro, TINY, MODEL, ONE_DEVICE, HOW)

    return jax.jit(jax.value_and_grad(loss))


def total_gradient(weights, arrays) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradient of all micro-batches, added up in float64."""
    loss, total = 0.0, {}
    for a in range(len(arrays["tokens"])):
        part, grads = gradient_of_micro()(weights, {k: v[a] for k, v in arrays.items()})
        loss += float(part)
        for path, grad in params.flatten(grads).items():
            total[path] = total.get(path, 0) + np.asarray(grad, np.float64)
    return loss, total


def relative(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    """The largest relative distance of any weight's gradient."""
    return max(np.linalg.norm(got[p] - want[p]) / np.linalg.norm(want[p]) for p in want)


def test_packed_gradient_is_the_unpacked_one():
    weights = hand_made_weights()
    packed = batcher(EXAMPLES, 10).batch(0)
    assert packed.arrays["segments"].max() == 3
    one_row = {name: array.reshape(-1, 1, 128) for name, array in packed.arrays.items()}
    loss, gradient = total_gradient(weights, one_row)
    alone = [batcher([e], 1, microbatch_tokens=128).batch(0) for e in EXAMPLES]
    shares = [step.num_targets / packed.num_targets for step in alone]
    unpacked = {
        name: np.concatenate([step.arrays[name] for step in alone]) for name in packed.arrays
    }
    unpacked["weights"] *= np.asarray(shares, np.float32)[:, None, None]
    want_loss, want = total_gradient(weights, unpacked)
    assert loss == pytest.approx(want_loss, rel=1e-6)
    assert relative(gradient, want) <= 1e-5
    # The same rows without segments: examples see each other, and the test must see that.
    blurred = dict(one_row, segments=np.minimum(one_row["segments"], 1))
    assert relative(total_gradient(weights, blurred)[1], want) > 1e-2


def test_accumulation_of_four_is_accumulation_of_one():
    weights = hand_made_weights()
    four = batcher(EXAMPLES, 10, microbatch_tokens=128).batch(0)
    assert four.num_micro == 4
    arrays = {name: array[:4] for name, array in four.arrays.items()}
    assert arrays["tokens"].shape == (4, 1, 128)

    @jax.jit
    def gradient(weights, arrays, num_micro):
        def add(micro, total):
            loss = functools.partial(
                train_step.mean_loss, shape=TINY, model=MODEL, mesh=ONE_DEVICE, how=HOW
            )
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(weights, micro))

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, weights))
        loss, grads = train_step.accumulate(add, arrays, num_micro, zero)
        return loss, params.flatten(grads)

    loss, grads = gradient(weights, arrays, 4)
    together = {name: array.reshape(1, 4, 128) for name, array in arrays.items()}
    one_loss, one_grads = gradient(weights, together, 1)
    assert float(loss) == pytest.approx(float(one_loss), rel=1e-6)
    assert relative(grads, one_grads) <= 1e-6
    # Micro-batches beyond num_micro are not looked at.
    loss_of_three, _ = gradient(weights, arrays, 3)
    poisoned = dict(arrays, tokens=arrays["tokens"].copy())
    poisoned["tokens"][3] = 1
    assert gradient(weights, poisoned, 3)[0] == loss_of_three != loss


def test_compute_dtype():
    assert llama.compute_dtype("auto", "cpu") == jnp.float32, "bfloat16 is slower on CPU"
    assert llama.compute_dtype("auto", "tpu") == jnp.bfloat16
    assert llama.compute_dtype("bfloat16", "cpu") == jnp.bfloat16


# A loss curve that must never change.

GOLDEN_RATE = 2e-3


def golden_examples() -> list[EncodedExample]:
    """tests/golden/tiny_tokens.json: 80 rows, prompt_length first, then the ids."""
    rows = json.loads((GOLDEN / "tiny_tokens.json").read_text())
    return [EncodedExample(np.asarray(ids, np.int32), length) for length, *ids in rows]


def golden_config() -> RunConfig:
    config = run_config(Path())
    recipe = optimizers.OptimizerConfig(
        name="adamw",
        learning_rate=GOLDEN_RATE,
        schedule="cosine",
        warmup_ratio=0.1,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        weight_decay=0.01,
        max_grad_norm=1.0,
        first_moment="float32",
        offload=False,
    )
    return dataclasses.replace(config, optimizer=recipe)


def golden_curve(
    steps: int = 10, recipe: dict | None = None, rules: dict | None = None, **mesh_sizes
) -> dict[str, list]:
    """Steps of 8 examples each from hand-made weights; no random number anywhere.

    `recipe`, `rules`: what is changed in the settings of the optimizer and of sharding.
    """
    sizes = tuple(mesh_sizes.get(axis, 1) for axis in sharding.AXES)
    mesh = jax.make_mesh(
        sizes,
        sharding.AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[: math.prod(sizes)],
    )
    config, examples = golden_config(), golden_examples()
    recipe = dataclasses.replace(config.optimizer, **recipe or {})
    spread = dataclasses.replace(config.sharding, rules=config.sharding.rules | (rules or {}))
    config = dataclasses.replace(config, optimizer=recipe, sharding=spread)
    update = optimizers.make(
        config.optimizer, steps, params.decay_mask(TINY), params.matrix_axes(TINY)
    )
    step_once, _ = train_step.make_steps(TINY, config, update, mesh)
    weights = hand_made_weights()
    state = jax.device_put(
        {"params": weights, "opt_state": update.init(weights)},
        train_step.state_shardings(TINY, config, update, mesh),
    )
    result = {"loss": [], "grad_norm": []}
    for i in range(steps):
        groups, start = sharding.batch_groups(mesh), 8 * i % len(examples)
        one = batcher(examples[start : start + 8], 8, row_groups=groups, microbatch_tokens=128)
        batch = one.batch(0)
        arrays, goes_on = sharding.put_batch(batch.arrays, mesh), sharding.put_flag(False, mesh)
        state, report = step_once(state, arrays, np.int32(batch.num_micro), goes_on)
        for name, values in result.items():
            values.append(float(report[name]))
    return result


@pytest.fixture(scope="module")
def curve_of_one_device() -> dict[str, list[float]]:
    return golden_curve()


def test_golden_loss_curve(curve_of_one_device):
    """Where a change of the mathematics is meant, the slow test below has the last word."""
    golden = json.loads((GOLDEN / "tiny_loss.json").read_text())
    for name, values in curve_of_one_device.items():
        np.testing.assert_allclose(values, golden[name], rtol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def twenty_steps_of_one_device() -> dict[str, list[float]]:
    return golden_curve(20)


@pytest.mark.parametrize(
    "how",
    [
        {"data": 8},
        {"fsdp": 8},
        {"tensor": 8, "rules": {"heads": "", "kv_heads": ""}},  # of which tiny has fewer
        {"data": 2, "fsdp": 2, "tensor": 2},
    ],
    ids=str,
)
def test_loss_curve_is_the_same_on_any_mesh(twenty_steps_of_one_device, how):
    curve = golden_curve(20, **how)
    for name, values in curve.items():
        assert len(values) == 20
        np.testing.assert_allclose(
            values, twenty_steps_of_one_device[name], rtol=1e-5, err_msg=name
        )


MIXED = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.slow
def test_loss_curve_of_adafactor_is_the_same_on_any_mesh(twenty_steps_of_one_device):
    alone = golden_curve(10, {"name": "adafactor"})
    spread = golden_curve(10, {"name": "adafactor"}, **MIXED)
    np.testing.assert_allclose(spread["loss"], alone["loss"], rtol=1e-5)
    assert alone["loss"][-1] < alone["loss"][0] - 0.3
    assert abs(alone["loss"][-1] - twenty_steps_of_one_device["loss"][9]) > 1e-3


def test_loss_curve_with_moments_in_the_host_is_the_same(twenty_steps_of_one_device):
    curve = golden_curve(20, {"offload": True}, **MIXED)
    np.testing.assert_allclose(curve["loss"], twenty_steps_of_one_device["loss"], rtol=1e-5)


@pytest.mark.slow
def test_golden_loss_curve_is_that_of_torch():
    """transformers' model, torch's AdamW, one unpadded example at a time."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from alpacare_jax.convert import params_to_hf

    golden = json.loads((GOLDEN / "tiny_loss.json").read_text())
    config = golden_config().optimizer
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**TINY.to_hf(), attn_implementation="eager")
    )
    tensors = params_to_hf(jax.device_get(hand_made_weights()), TINY)
    state = {key: torch.from_numpy(array.copy()) for key, array in tensors}
    model.load_state_dict(state, strict=True)
    names = dict(model.named_parameters())
    matrices = [p for n, p in names.items() if "norm" not in n]
    norms = [p for n, p in names.items() if "norm" in n]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": norms, "weight_decay": 0.0}]
    betas = (config.beta1, config.beta2)
    adamw = torch.optim.AdamW(groups, lr=GOLDEN_RATE, betas=betas, eps=config.epsilon)
    warmup = optimizers.warmup_steps(config, 10)
    schedule = transformers.get_cosine_schedule_with_warmup(adamw, warmup, 10)
    examples = golden_examples()
    for i in range(10):
        batch = examples[8 * i : 8 * i + 8]
        count = sum(e.num_targets for e in batch)
        total = 0.0
        for e in batch:
            ids = torch.from_numpy(e.ids).long()[None]
            logits = model(ids).logits[0, e.prompt_length - 1 : -1]
            targets = ids[0, e.prompt_length :]
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        adamw.step()
        schedule.step()
        adamw.zero_grad()
        assert total == pytest.approx(golden["loss"][i], rel=1e-5)
        assert float(norm) == pytest.approx(golden["grad_norm"][i], rel=1e-4)


# Stops and restarts.


def after_write(patch: pytest.MonkeyPatch, step: int, action) -> None:
    """Calls `action` once, when the metrics of `step` have been written."""
    write = metrics.MetricsWriter.write

    def wrapped(self, at, **values):
        write(self, at, **values)
        if at == step:
            action()

    patch.setattr(metrics.MetricsWriter, "write", wrapped)


def test_five_steps_and_five_more_are_ten_bit_for_bit(corpus, finished, tmp_path, capsys):
    config = stopped_run(corpus, tmp_path, step=5)
    message = "stopped by SIGTERM at step 5, which is saved; run again to go on"
    assert message in capsys.readouterr().err
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "run.json").read_text())["end"] is None
    stale = iter([None])  # as a host's view of a shared folder may be
    with small_machine() as patch:
        compile_once(patch)
        patch.setattr(checkpoint, "latest_step", lambda _: next(stale))
        patch.setattr(processes, "broadcast_from_process_0", lambda value: value or 5.0)
        train.run(config, tmp_path)
    err = capsys.readouterr().err
    assert "going on from step 5" in err, "all start where the first process does"
    assert "step 6/10" in err
    assert "step 5/10" not in err
    assert_same_end(tmp_path, finished.workdir, 10)


class Killed(BaseException):
    """Leaves a run as SIGKILL does: nothing catches it."""


@pytest.mark.parametrize("killed_after, goes_on_from", [(2, 0), (7, 6)])
def test_what_was_logged_beyond_the_checkpoint_is_logged_anew(
    corpus, finished, tmp_path, capsys, killed_after, goes_on_from
):
    config = ten_steps(corpus, checkpoint__every_steps=3)

    def kill():
        assert lines(tmp_path)[-1]["step"] == killed_after, "nothing waits in a buffer"
        raise Killed

    with small_machine() as patch, pytest.raises(Killed):
        compile_once(patch)
        after_write(patch, killed_after, kill)
        train.run(config, tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # the kill cut a line short
    capsys.readouterr()
    go_on(config, tmp_path)
    assert (f"going on from step {goes_on_from}" in capsys.readouterr().err) == bool(goes_on_from)
    assert_same_end(tmp_path, finished.workdir, 10)


def test_what_a_killed_save_leaves_is_not_used(corpus, finished, tmp_path, capsys):
    config = stopped_run(corpus, tmp_path, step=4)
    checkpoints = tmp_path / "checkpoints"
    half = checkpoints / "6.orbax-checkpoint-tmp"
    shutil.copytree(checkpoints / "4", half)
    shutil.rmtree(half / "opt_state")
    (half / "params" / "manifest.ocdbt").write_bytes(b"")
    assert checkpoint.find_step(tmp_path, "latest") == 4
    capsys.readouterr()
    go_on(config, tmp_path)
    assert "going on from step 4" in capsys.readouterr().err
    assert not half.exists()
    assert_same_end(tmp_path, finished.workdir, 10)


@pytest.mark.parametrize(("asked", "stopped"), [(1, 2), (2, 2), (3, 4), (4, 4), (9, 10)])
def test_the_step_that_a_stop_promises_is_saved(corpus, tmp_path, capsys, asked, stopped):
    """The step given to the devices when it is noticed is finished too; here every second is."""
    stopped_run(corpus, tmp_path, step=asked, checkpoint__every_steps=0)
    assert checkpoint.find_step(tmp_path, "latest") == lines(tmp_path)[-1]["step"] == stopped
    said = [line for line in capsys.readouterr().err.splitlines() if "stopped by SIGTERM" in line]
    promise = f"stopped by SIGTERM at step {stopped}, which is saved; run again to go on"
    assert said == ([promise] if stopped < 10 else [])


def test_a_loss_that_is_not_a_number_stops_the_run(corpus, finished, tmp_path, capsys):
    config = ten_steps(corpus, checkpoint__every_steps=4)
    batch = Batcher.batch

    def poisoned(self, step):
        one = batch(self, step)
        if step == 6:  # step 7, counted from 1: no evaluation, no checkpoint
            one.arrays["weights"][one.arrays["weights"] > 0] = np.nan
        return one

    with small_machine() as patch:
        compile_once(patch)
        patch.setattr(Batcher, "batch", poisoned)
        with pytest.raises(FloatingPointError) as raised:
            train.run(config, tmp_path)
    for part in ("at step 7", "last good step is 6", "last checkpoint 4", "lower optimizer.learn"):
        assert part in str(raised.value)
    assert [line["step"] for line in lines(tmp_path)] == list(range(7))
    assert checkpoint.find_step(tmp_path, "latest") == 4
    weights = checkpoint.load_params(tmp_path, TINY)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))
    capsys.readouterr()
    go_on(config, tmp_path)  # the checkpoint is good: without the poison there is nothing amiss
    assert "going on from step 4" in capsys.readouterr().err
    assert_same_end(tmp_path, finished.workdir, 10)


def test_a_held_out_loss_that_is_not_a_number_is_not_saved(corpus, tmp_path):
    config = ten_steps(corpus, checkpoint__every_steps=5)
    poison = []
    with small_machine() as patch:
        compile_once(patch)
        make_steps = train_step.make_steps

        def poisoned(*args):
            step, evaluate = make_steps(*args)
            return step, lambda *inputs: evaluate(*inputs) * (np.nan if poison else 1)

        patch.setattr(train_step, "make_steps", poisoned)
        after_write(patch, 7, lambda: poison.append(True))
        with pytest.raises(FloatingPointError, match=r"eval_loss nan.* at step 8;.*checkpoint 5"):
            train.run(config, tmp_path)
    assert checkpoint.find_step(tmp_path, "latest") == 5


def test_an_error_does_not_lose_the_save_that_is_under_way(corpus, finished, tmp_path):
    config = ten_steps(corpus, checkpoint__every_steps=1)
    batch = Batcher.batch

    def failing(self, step):
        if step == 6:  # asked for while step 6 runs and the state after step 5 is written
            raise OSError("the data are gone")
        return batch(self, step)

    closed, close = [], metrics.MetricsWriter.close
    close_saves, end_watch = checkpoint.TrainingCheckpoints.close, processes.Watchdog.__exit__
    order = []
    with small_machine() as patch, pytest.raises(OSError, match="the data are gone"):
        compile_once(patch)
        patch.setattr(Batcher, "batch", failing)
        patch.setattr(metrics.MetricsWriter, "close", lambda w: (closed.append(w), close(w)))
        patch.setattr(
            checkpoint.TrainingCheckpoints,
            "close",
            lambda s: (order.append("save"), close_saves(s)),
        )
        patch.setattr(
            processes.Watchdog, "__exit__", lambda w, *e: order.append("watch") or end_watch(w)
        )
        train.run(config, tmp_path)
    assert len(closed) == 1, "what TensorBoard still holds is written"
    assert order == ["save", "watch"], "other processes may never come to this save"
    assert checkpoint.latest_step(tmp_path) == 5
    go_on(config, tmp_path)
    assert_same_end(tmp_path, finished.workdir, 10)


@pytest.mark.slow
def test_a_run_goes_on_over_other_devices(corpus, finished, tmp_path, capsys):
    config = stopped_run(corpus, tmp_path, step=5)
    with small_machine() as patch:
        patch.setattr(jax, "device_count", lambda: 8)
        train.run(config, tmp_path)
    assert (
        "6 examples a step do not fill 8 devices; train.batch_size of " in capsys.readouterr().err
    )
    loss = lambda workdir: [line.get("loss", 0) for line in lines(workdir)]  # noqa: E731
    np.testing.assert_allclose(loss(tmp_path), loss(finished.workdir), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"optimizer__name": "adafactor"}, {"optimizer__name": "adafactor"}),
        ({"optimizer__offload": True}, {"optimizer__offload": True}),
        ({}, {"optimizer__offload": True}),
    ],
    ids=str,
)
def test_other_moments_go_on_over_other_devices(corpus, tmp_path, before, after):
    one_shape = {"train__microbatch_tokens": 512}
    stopped_run(corpus, tmp_path / "stopped", step=5, **before, **one_shape)
    config = ten_steps(corpus, checkpoint__every_steps=5, **after, **one_shape, sharding__tensor=2)
    with small_machine() as patch:
        compile_once(patch)
        patch.setattr(jax, "device_count", lambda: 4)
        train.run(config, tmp_path / "stopped")
        patch.setattr(jax, "device_count", lambda: 1)
        train.run(ten_steps(corpus, **before, **one_shape), tmp_path / "whole")
    loss = lambda name: [line.get("loss", 0) for line in lines(tmp_path / name)]  # noqa: E731
    assert len(loss("whole")) == 11
    np.testing.assert_allclose(loss("stopped"), loss("whole"), rtol=1e-5)


# The command itself.

TWENTY_STEPS = {"train__epochs": 4, "train__eval_every": 5, "checkpoint__every_steps": 3}


def command(folder: Path, workdir: Path, **changes) -> list[str]:
    flags = [f"--config.{key}={value}" for key, value in settings(folder, **changes).items()]
    return [
        *(sys.executable, "-m", "alpacare_jax.train", "--config=configs/quickstart.py"),
        *(f"--workdir={workdir}", *flags),
    ]


def start(args: list[str], **options) -> subprocess.Popen:
    env = os.environ | COMPILES_QUICKLY | {"JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(
        args, cwd=REPOSITORY, env=env, stderr=subprocess.PIPE, text=True, **options
    )


def interrupted(args: list[str], note: Path, text: str) -> list[str]:
    """The command of a run with a signal on its way; see interrupted_train.py for the note."""
    note.write_text(text)
    python, _, _, *flags = args
    return [python, "-m", "tests.support.interrupted_train", str(note), *flags]


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> bool:
    """Whether the run got that far; False where it ended before."""
    path = workdir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and f'"step": {step},' in path.read_text():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("sent", "code", "name"), [(signal.SIGTERM, 0, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_signal_saves_and_stops(corpus, tmp_path, sent, code, name):
    process = start(command(corpus, tmp_path, train__epochs=400, data__eval_path=""))
    assert wait_for_step(process, tmp_path, 3), process.communicate()[1]
    process.send_signal(sent)
    _, err = process.communicate()
    assert process.returncode == code, err
    last = lines(tmp_path)[-1]["step"]
    assert err.splitlines()[-1] == (
        f"stopped by {name} at step {last}, which is saved; run again to go on"
    )
    assert checkpoint.find_step(tmp_path) == last
    assert "Traceback" not in err


@pytest.mark.slow
def test_sigkill_at_random_moments_leaves_the_same_curve(corpus, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    process = start(command(corpus, undisturbed, **TWENTY_STEPS))
    assert process.communicate()[1].count("finished in") == 1
    draw, kills = random.Random(0), 0
    args = command(corpus, killed, **TWENTY_STEPS)
    for step in (1, 6, 13):
        note = f"0 {step} SIGKILL {draw.uniform(0, 0.2)}"
        process = start(interrupted(args, tmp_path / "note", note))
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if checkpoint.latest_step(killed):
            weights = checkpoint.load_params(killed, TINY, step="latest")
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))
    process = start(args)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert kills >= 2
    assert_same_end(killed, undisturbed, 20)


@pytest.mark.slow
def test_nan_through_the_command(corpus, tmp_path):
    """A rate that blows the model up: one line, exit code 1."""
    process = start(
        command(corpus, tmp_path, optimizer__learning_rate=1e30, checkpoint__every_steps=1)
    )
    _, err = process.communicate()
    assert process.returncode == 1
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert "the last good step is" in line
    assert "lower optimizer.learning_rate" in line
    assert "Traceback" not in err
    checkpoint.load_params(tmp_path, TINY, step="latest")


def write_golden() -> None:
    """Remakes the golden files: python -m tests.alpacare_jax.test_train."""
    rows = []
    for i in range(80):
        length, prompt = 9 + (17 * i) % 53, 2 + i % 6
        rows.append([prompt, 1, *((i % 8 + j * j) % 40 + 3 for j in range(length)), 2])
    text = ",\n".join(json.dumps(row) for row in rows)
    (GOLDEN / "tiny_tokens.json").write_text(f"[\n{text}\n]\n")
    (GOLDEN / "tiny_loss.json").write_text(json.dumps(golden_curve(), indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
