"""Preference tuning: DPO as published, packed and on any mesh, and runs that are resumed."""

import dataclasses
import json
import math
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from alpacare_jax import train
from alpacare_jax.data.batches import Batcher
from alpacare_jax.data.encoding import EncodedExample
from alpacare_jax.distributed import sharding
from alpacare_jax.model import params
from alpacare_jax.model.lora import LoraConfig
from alpacare_jax.training import optimizers, preference
from alpacare_jax.training.config import RunConfig
from alpacare_jax.training.train_step import TrainingProgram
from tests.conftest import WORDS
from tests.support.hf_folders import params_to_hf
from tests.support.training import (
    TINY,
    assert_same_end,
    compile_once,
    curve,
    hand_made_params,
    lines,
    one_line_error,
    resume,
    run_config,
    small_machine,
    stop_at,
    ten_steps,
)

pytestmark = pytest.mark.usefixtures("quickly_compiled")

PAIRS, STEPS, SIZE = 8, 20, 4
CONFIG = dataclasses.replace(
    run_config(Path(), preference__beta=0.2, preference__sft_weight=0.3, train__batch_size=SIZE),
)


def answer(i: int, prompt: int, length: int) -> EncodedExample:
    ids = np.concatenate([(7 * i + np.arange(prompt)) % 300, (5 * i + 3 * np.arange(length) ** 2)])
    return EncodedExample((ids % 300 + 3).astype(np.int32), prompt)


EXAMPLES = [
    answer(i + 50 * k, 3 + i % 4, 4 + (5 * i + 9 * k) % 23) for i in range(PAIRS) for k in range(2)
]
for _chosen, _rejected in zip(EXAMPLES[::2], EXAMPLES[1::2], strict=True):
    _rejected.ids[: _chosen.prompt_length] = _chosen.ids[: _chosen.prompt_length]


def batcher(examples=EXAMPLES, size=SIZE, groups=1, tokens=256, references=None) -> Batcher:
    return Batcher(
        examples,
        size,
        seed=1,
        max_length=64,
        max_row_length=128,
        row_multiple=128,
        row_groups=groups,
        microbatch_tokens=tokens,
        answers=2,
        references=references,
    )


def program(**mesh_sizes: int) -> TrainingProgram:
    sizes = tuple(mesh_sizes.get(axis, 1) for axis in sharding.AXES)
    mesh = jax.make_mesh(
        sizes,
        sharding.AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[: math.prod(sizes)],
    )
    return TrainingProgram(TINY, CONFIG, STEPS, mesh)


def references(program: TrainingProgram, weights, examples=EXAMPLES) -> np.ndarray:
    step, groups = program.make_reference_step(), sharding.batch_groups(program.mesh)
    return preference.reference_log_probs(
        batcher(examples, 3, groups=groups),
        lambda arrays: step(weights, sharding.put_batch(arrays, program.mesh), {}),
    )


def dpo_curve(**mesh_sizes: int) -> list[dict[str, float]]:
    """What STEPS steps report, from hand-made weights; micro-batches of one row a device."""
    ours = program(**mesh_sizes)
    weights = jax.device_put(hand_made_params(), ours.state_shardings["params"])
    state = {"params": weights, "opt_state": ours.optimizer.init(weights)}
    state = jax.device_put(state, ours.state_shardings)
    data = batcher(
        groups=sharding.batch_groups(ours.mesh), tokens=128, references=references(ours, weights)
    )
    train_step, _ = ours.make_steps()
    stop, found = sharding.put_flag(False, ours.mesh), []
    for number in range(STEPS):
        batch = data.batch(number)
        arrays = sharding.put_batch(batch.arrays, ours.mesh)
        state, report = train_step(state, arrays, np.int32(batch.num_micro), stop, {})
        found.append({name: float(value) for name, value in report.items()})
    return found


@pytest.fixture(scope="module")
def curve_of_one_device() -> list[dict[str, float]]:
    return dpo_curve()


def torch_model(torch, transformers):
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**TINY.to_hf(), attn_implementation="eager")
    )
    tensors = params_to_hf(jax.device_get(hand_made_params()), TINY)
    state = {key: torch.from_numpy(array.copy()) for key, array in tensors}
    model.load_state_dict(state, strict=True)
    return model


def torch_log_probs(model, example: EncodedExample):
    """Of the answer's tokens, one by one."""
    import torch

    ids = torch.from_numpy(example.ids).long()[None]
    log_probs = torch.log_softmax(model(ids).logits[0, example.prompt_length - 1 : -1], dim=-1)
    return log_probs.gather(1, ids[0, example.prompt_length :, None])[:, 0]


def test_twenty_steps_are_those_of_the_published_formula(torch, transformers, curve_of_one_device):
    """arXiv:2305.18290, equation 7, on one unpadded answer at a time; the SFT term as in TRL.

    docs/experiments/preference.md compares TRL itself.
    """
    config, beta = CONFIG.optimizer, CONFIG.preference.beta
    model = torch_model(torch, transformers)
    with torch.no_grad():
        reference = [torch_log_probs(model, example).sum() for example in EXAMPLES]
    adamw = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=0.0,
    )
    warmup = optimizers.warmup_steps(config, STEPS)
    schedule = transformers.get_cosine_schedule_with_warmup(adamw, warmup, STEPS)
    data = batcher()
    for number, report in enumerate(curve_of_one_device):
        losses, margins, tokens = [], [], []
        for pair in data.indices(number):
            chosen, rejected = (
                torch_log_probs(model, e) for e in EXAMPLES[2 * pair : 2 * pair + 2]
            )
            rewards = [
                beta * (answer.sum() - reference[2 * pair + k])
                for k, answer in enumerate((chosen, rejected))
            ]
            margins.append(rewards[0] - rewards[1])
            losses.append(-torch.nn.functional.logsigmoid(margins[-1]))
            tokens.append(chosen)
        chosen_loss = -torch.cat(tokens).mean()
        loss = torch.stack(losses).mean() + CONFIG.preference.sft_weight * chosen_loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        adamw.step()
        schedule.step()
        adamw.zero_grad()
        margin = torch.stack(margins)
        want = {
            "loss": loss,
            "grad_norm": norm,
            "chosen_loss": chosen_loss,
            "reward_margin": margin.mean(),
            "chosen_log_prob": sum(t.sum() for t in tokens) / SIZE,
        }
        for name, value in want.items():
            assert report[name] == pytest.approx(float(value.detach()), rel=1e-4, abs=2e-5), (
                number,
                name,
            )
        if number > 5:  # before, margins are rounding
            assert report["pair_accuracy"] == (margin > 0).float().mean()
    assert margin.min() > 0.1, "the model has learnt the pairs"


def test_gradient_is_that_of_the_published_formula(torch, transformers):
    """Weight by weight, where no pair is decided yet and where all are."""
    model, ours = torch_model(torch, transformers), program()
    weights = hand_made_params()
    for shift in (0.0, 12.0):  # what the reference thinks of the chosen answers
        values = references(ours, weights)
        values[::2] -= shift
        batch = batcher(size=PAIRS, references=values).batch(0)
        micro = {name: array.reshape(-1, 128) for name, array in batch.arrays.items()}
        gradient = jax.jit(jax.grad(lambda w, m: ours.mean_loss(w, m)[0]))(weights, micro)
        model.zero_grad()
        losses, tokens = [], []
        for pair in range(PAIRS):
            answers = [torch_log_probs(model, e) for e in EXAMPLES[2 * pair : 2 * pair + 2]]
            margin = answers[0].sum() - answers[1].sum()
            margin = margin - float(values[2 * pair] - values[2 * pair + 1])
            losses.append(-torch.nn.functional.logsigmoid(CONFIG.preference.beta * margin))
            tokens.append(answers[0])
        sft = -CONFIG.preference.sft_weight * torch.cat(tokens).mean()
        (torch.stack(losses).mean() + sft).backward()
        names = dict(model.named_parameters())
        for name, array in params_to_hf(jax.device_get(gradient), TINY):
            want = names[name].grad.numpy()
            assert np.linalg.norm(array - want) <= 1e-4 * np.linalg.norm(want), name


def test_packed_gradient_is_the_unpacked_one():
    weights, ours = hand_made_params(), program()
    values = references(ours, weights) + np.linspace(-3, 3, len(EXAMPLES), dtype=np.float32)
    gradient = jax.jit(jax.value_and_grad(lambda w, m: ours.mean_loss(w, m)[0]))

    def total(rows):
        loss, grads = 0.0, {}
        for row in rows:
            part, found = gradient(weights, row)
            loss += float(part)
            for path, grad in params.flatten(found).items():
                grads[path] = grads.get(path, 0) + np.asarray(grad, np.float64)
        return loss, grads

    packed = batcher(size=PAIRS, references=values).batch(0)
    assert packed.arrays["segments"].max() >= 6
    rows = {name: array.reshape(-1, 1, 128) for name, array in packed.arrays.items()}
    loss, grads = total([{n: a[i] for n, a in rows.items()} for i in range(len(rows["tokens"]))])
    chosen_tokens = sum(e.num_targets for e in EXAMPLES[::2])
    alone = []
    for pair in range(PAIRS):
        at = slice(2 * pair, 2 * pair + 2)
        step = batcher(EXAMPLES[at], 1, references=values[at]).batch(0)
        row = {name: array[0, :1] for name, array in step.arrays.items()}
        row["weights"] = row["weights"] * np.float32(EXAMPLES[at][0].num_targets / chosen_tokens)
        row["pair_weights"] = row["pair_weights"] / np.float32(PAIRS)
        alone.append(row)
    want_loss, want = total(alone)
    assert loss == pytest.approx(want_loss, rel=1e-6)
    for path, grad in grads.items():
        assert np.linalg.norm(grad - want[path]) <= 1e-5 * np.linalg.norm(want[path]), path


def test_reference_log_probs_do_not_depend_on_the_batch():
    ours, weights = program(), hand_made_params()
    found = references(ours, weights)
    pairs = [references(ours, weights, EXAMPLES[i : i + 6]) for i in range(0, 12, 2)]
    for start, part in zip(range(0, 12, 2), pairs, strict=True):
        np.testing.assert_allclose(part, found[start : start + 6], rtol=1e-6)
    assert len(set(found.tolist())) == len(EXAMPLES) and (found < -5).all()


@pytest.mark.parametrize(
    "mesh_sizes",
    [pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow)],
    ids=str,
)
def test_curve_is_the_same_on_any_mesh(curve_of_one_device, mesh_sizes):
    for number, report in enumerate(dpo_curve(**mesh_sizes)):
        for name, value in report.items():
            if name != "pair_accuracy":
                want = curve_of_one_device[number][name]
                assert value == pytest.approx(want, rel=2e-5, abs=1e-5), (number, name)


# Runs.


def write_pairs(path: Path, count: int) -> Path:
    """`count` pairs to 9 prompts: chosen answers have other words than rejected ones."""
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            chosen, rejected = (
                " ".join(WORDS[first + (k * i + j) % 9] for j in range(1 + (k * i) % 9))
                for first, k in ((0, 4), (9, 5))
            )
            record = {"prompt": f"what is {WORDS[i % 9]}", "chosen": chosen, "rejected": rejected}
            file.write(json.dumps(record) + "\n")
    return path


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory) -> RunConfig:
    path = write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", 40)
    return ten_steps(corpus, data__path=str(path), preference__beta=0.1)


@pytest.fixture(scope="module")
def finished_dpo(config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("dpo") / "run"
    resume(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def stopped_dpo(config, finished_dpo, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("dpo") / "stopped"
    stop_at(config, workdir, step=4)
    return workdir


def test_a_run_learns_the_preferences(finished_dpo):
    first, *_, last = lines(finished_dpo)
    # Before the first step the model is the reference: every margin is rounding.
    assert first["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["eval_loss"] < first["eval_loss"] - 0.01
    assert last["reward_margin"] > 0.05 and last["pair_accuracy"] > 0.8
    assert last["eval_reward_margin"] > 0.02 and 0 <= last["eval_pair_accuracy"] <= 1
    assert last["chosen_log_prob"] < 0 > last["rejected_log_prob"]
    page = (finished_dpo / "report.html").read_text()
    for title in ("Loss of a pair", "Reward margin", "higher reward", "Log-probability"):
        assert title in page
    assert "nats a token" in page  # of the chosen answers


def test_with_lora_the_reference_is_the_base_alone(config, finished_dpo, tmp_path):
    values = {"rank": 4, "alpha": 8.0, "rslora": False, "dropout": 0.0, "base": "float32"}
    lora = LoraConfig(**values, targets="q_proj,v_proj,down_proj")
    resume(dataclasses.replace(config, lora=lora), tmp_path / "run")
    first, *_, last = lines(tmp_path / "run")
    assert first["eval_loss"] == pytest.approx(math.log(2), abs=1e-5), "a new adapter is none"
    assert last["eval_loss"] < first["eval_loss"] and last["reward_margin"] > 0
    ours, full = (
        [np.array(each) for each in json.loads((folder / "references.json").read_text())["values"]]
        for folder in (tmp_path / "run", finished_dpo)
    )
    for one, other in zip(ours, full, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_resuming_is_exact(config, finished_dpo, stopped_dpo, tmp_path, capsys):
    workdir = shutil.copytree(stopped_dpo, tmp_path / "run")
    resume(config, workdir)
    assert "references.json has the reference log-probabilities" in capsys.readouterr().err
    assert_same_end(workdir, finished_dpo, len(lines(finished_dpo)) - 1)
    for line, other in zip(lines(workdir), lines(finished_dpo), strict=True):
        for name in ("reward_margin", "eval_pair_accuracy", "rejected_log_prob", "chosen_loss"):
            assert line.get(name) == other.get(name)
    assert (workdir / "references.json").read_text() == (
        finished_dpo / "references.json"
    ).read_text()


def test_sigterm_while_references_are_computed_ends_the_run(config, tmp_path, capsys, monkeypatch):
    put, calls = sharding.put_batch, []

    def second_time(arrays, mesh):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return put(arrays, mesh)

    before = signal.getsignal(signal.SIGTERM)
    try:
        with monkeypatch.context() as patch, small_machine() as machine:
            compile_once(machine)
            patch.setattr(sharding, "put_batch", second_time)
            assert train.run(config, tmp_path / "run") == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(calls) == 2, "no further batch"
    assert "stopped by SIGTERM before the first step" in capsys.readouterr().err
    assert not (tmp_path / "run" / "references.json").exists()


def test_references_are_verified(config, finished_dpo, stopped_dpo, tmp_path, capsys):
    workdir = shutil.copytree(stopped_dpo, tmp_path / "run")
    path = workdir / "references.json"
    whole = path.read_text()
    content = json.loads(whole)
    content["values"][0][3][1] += 0.5
    path.write_text(json.dumps(content))
    line = one_line_error(config, workdir, capsys)
    assert f"{path} is damaged: its checksum differs; delete {path}" in line
    path.write_text(whole[:-40])
    assert f"{path} is damaged; delete {path}" in one_line_error(config, workdir, capsys)
    content = json.loads(whole)
    content["inputs"]["pairs"] = "0" * 64
    path.write_text(json.dumps(content))
    assert f"{path} is of other inputs (pairs: " in one_line_error(config, workdir, capsys)
    path.unlink()
    resume(config, workdir)
    assert "reference log-probabilities of 80 answers are computed" in capsys.readouterr().err
    assert path.read_text() == whole
    assert curve(workdir) == curve(finished_dpo)


def test_settings_of_a_run_must_stay(corpus, config, stopped_dpo, capsys):
    other = dataclasses.replace(config, preference=preference.PreferenceConfig(0.2, 0.0))
    assert "preference.beta: 0.1 before, 0.2 now" in one_line_error(other, stopped_dpo, capsys)


@pytest.mark.parametrize(
    "beta, weight, reason",
    [
        (-0.1, 0.0, "preference.beta must be at least 0, not -0.1"),
        (0.1, -1.0, "preference.sft_weight must be at least 0"),
        (0.0, 0.5, "preference.sft_weight needs preference.beta"),
    ],
)
def test_settings_out_of_range(beta, weight, reason):
    with pytest.raises(ValueError, match=reason):
        preference.PreferenceConfig(beta, weight)
