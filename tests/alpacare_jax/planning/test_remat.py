"""What `model.remat=auto` takes: by made-up programs, and by real ones of the tiny model."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from alpacare_jax.distributed import processes, sharding
from alpacare_jax.model.layers import REMAT_POLICIES
from alpacare_jax.planning import programs, remat, roofline, topologies
from alpacare_jax.training.train_step import TrainingProgram
from tests.alpacare_jax.planning.test_training import TINY, tiny_config
from tests.support.training import one_line_error, resume, stopped_run, ten_steps

pytestmark = pytest.mark.usefixtures("quickly_compiled")

ARRAYS = {
    name: np.zeros((2, 8, 128), np.float32 if name == "weights" else np.int32)
    for name in ("tokens", "targets", "weights", "segments", "positions")
}
GPU = topologies.Topology("ours", jax.devices()[:1], 1, 989e12, 1e9, 4.8e12, 1e9)


@pytest.fixture(scope="module")
def program() -> TrainingProgram:
    return programs.make_program(tiny_config(), jax.devices()[:1])


def test_what_each_policy_keeps_and_computes(program):
    found = {c.policy: c for c in remat.reckon(program, ARRAYS, GPU)}
    assert found.keys() == REMAT_POLICIES.keys()
    kept = [found[policy].kept_bytes for policy in REMAT_POLICIES]
    assert kept == sorted(kept, reverse=True)
    flops = [found[policy].flops for policy in REMAT_POLICIES]
    assert flops == sorted(flops) and flops[0] < flops[-1]
    sizes, tokens = TINY.sizes, ARRAYS["tokens"][0].size
    of_layer = 2 * sizes["D"] + 2 * sizes["F"] + (sizes["N"] + 2 * sizes["K"]) * sizes["H"]
    outside = found["full"].kept_bytes - 4 * tokens * sizes["L"] * sizes["D"]
    by_hand = 4 * tokens * sizes["L"] * of_layer
    assert found["dots"].kept_bytes - outside == pytest.approx(by_hand, rel=0.02)


def test_a_mesh_shares_what_is_kept():
    config = tiny_config()
    one, eight = (
        remat.reckon(programs.make_program(config, devices), ARRAYS, GPU)
        for devices in (jax.devices()[:1], jax.devices())
    )
    assert [c.kept_bytes / 8 for c in one] == [c.kept_bytes for c in eight]
    recomputed, shared = (max(c.flops for c in n) - min(c.flops for c in n) for n in (one, eight))
    assert recomputed / 8 == shared


def test_memory_too_slow_for_what_would_be_kept_makes_recomputing_faster(program):
    slow = dataclasses.replace(GPU, hbm_rate=1.0)
    policies = [c.policy for c in remat.reckon(program, ARRAYS, slow)]
    assert policies == list(REMAT_POLICIES)[::-1]
    fast = dataclasses.replace(GPU, hbm_rate=1e30)
    assert remat.reckon(program, ARRAYS, fast)[0].policy in ("none", "context")


def candidates(**found: tuple[float, float]) -> list[remat.Candidate]:
    return [remat.Candidate(policy, kept, cost, cost) for policy, (kept, cost) in found.items()]


FOUND = candidates(context=(50e6, 1.0), none=(90e6, 1.1), dots=(40e6, 1.2), full=(5e6, 2.0))


def test_what_keeps_more_than_a_faster_one_is_not_worth_trying():
    assert [c.policy for c in remat.worth_trying(FOUND)] == ["context", "dots", "full"]


def chosen(program, monkeypatch, room: float, rest: float, gives_up: bool = False):
    """What is chosen, and what was compiled for it, where a step takes `rest` and what is kept."""
    compiled, kept = [], {c.policy: c.kept_bytes for c in FOUND}

    def compile_traced(policy, available):
        compiled.append(policy)
        needed = rest + kept[policy]
        needs = {} if gives_up and needed > available else {"needed_bytes": needed}
        return None, {"fits": needed <= available, "compile_seconds": 1.0} | needs

    monkeypatch.setattr(remat, "reckon", lambda *arguments: FOUND)
    monkeypatch.setattr(programs, "trace_step", lambda program, _: program.run_config.model.remat)
    monkeypatch.setattr(roofline, "compile_traced", compile_traced)
    topology = dataclasses.replace(GPU, hbm_bytes=room)
    found, choice = remat.choose(program, ARRAYS, topology)
    assert found.run_config.model.remat == choice.policy == compiled[-1]
    assert choice.compile_seconds == len(compiled)
    return choice, compiled


@pytest.mark.parametrize(
    ("room", "rest", "compiled", "text"),
    [
        (1e9, 100e6, ["context"], "; the fastest by reckoning, none would keep more and take"),
        # The estimate of dots, from context's program, is over the room: it is not compiled.
        (130e6, 100e6, ["context", "full"], "; dots, which is faster, needs about 0.13"),
        (146e6, 100e6, ["context", "dots"], "; context, which is faster, needs 0.14"),
        (53e6, 40e6, ["dots", "full"], "; dots, which is faster, needs 0.07"),
        # Weights, moments, gradients and what is kept alone are over the room.
        (20e6, 5e6, ["full"], "; dots, which is faster, needs about 0.04"),
        # All but a hundredth: too near, but for the last.
        (151e6, 100e6, ["context", "dots"], "; context, which is faster, needs 0.14"),
        (106e6, 100e6, ["context", "full"], "; dots, which is faster, needs about 0.13"),
    ],
)
def test_the_fastest_that_fits(program, monkeypatch, room, rest, compiled, text):
    monkeypatch.setattr(remat, "_gib", lambda number: f"{number / 2**30:.2f}")
    choice, tried = chosen(program, monkeypatch, room, rest)
    assert tried == compiled and choice.fits
    assert f"remat {tried[-1]} (auto): " in str(choice) and text in str(choice)
    choice.check()


def test_a_compiler_that_gives_up_is_too_little_memory(program, monkeypatch):
    choice, tried = chosen(program, monkeypatch, 120e6, 100e6, gives_up=True)
    assert tried == ["context", "dots", "full"] and choice.fits
    assert choice.too_large["context"] > 120e6 and choice.compiled == ("full",)


def test_the_least_memory_of_all_processes_counts(program, monkeypatch):
    monkeypatch.setattr(processes, "smallest_of_all", lambda value: min(value, 146e6))
    choice, _ = chosen(program, monkeypatch, 1e9, 100e6)
    assert (choice.policy, choice.available_bytes) == ("dots", 146e6)


def test_where_nothing_fits_the_remedies_are_named(program, monkeypatch):
    choice, tried = chosen(program, monkeypatch, 100e6, 100e6)
    assert tried[-1] == "full" and not choice.fits
    with pytest.raises(
        ValueError, match=r"needs 0\.1 GiB per device even with remat full"
    ) as error:
        choice.check()
    for remedy in ("train.microbatch_tokens", "optimizer.offload", "lora.rank", "plan --search"):
        assert remedy in str(error.value)


def compilations() -> list[str]:
    found = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: found.append(event) if "backend_compile" in event else None
    )
    return found


def test_what_was_compiled_is_what_trains(program):
    found, choice = remat.choose(program, ARRAYS, GPU)
    assert choice.fits and choice.compiled == (choice.policy,)
    state = jax.tree.map(
        lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding),
        found.abstract_state(),
    )
    arrays, stop = sharding.put_batch(ARRAYS, found.mesh), sharding.put_flag(False, found.mesh)
    seen = compilations()
    _, report = found.steps[0](state, arrays, np.int32(1), stop, {})
    assert np.isfinite(float(report["grad_norm"]))
    assert seen == []


def test_a_run_says_and_records_what_it_chose(corpus, tmp_path, monkeypatch, capsys):
    config = stopped_run(
        corpus, tmp_path, step=4, model__remat="auto", train__microbatch_tokens=512
    )
    first = json.loads((tmp_path / "run.json").read_text())
    assert first["config"]["model"]["remat"] == "auto"
    (start,) = first["starts"]
    found, policy = start["remat"], start["remat"]["policy"]
    assert found["fits"] and found["compiled"] == [policy] and found["too_large"] == {}
    assert start["settings"] == {"model.remat": policy}
    err = capsys.readouterr().err
    assert err.count(f"compiling the training step with remat {policy} (") == 1  # no ": 30s so far"
    assert f"remat {policy} (auto): 0.0 of" in err and "the fastest by reckoning" in err

    less = dataclasses.replace(topologies.local(), hbm_bytes=found["needed_bytes"] - 1)
    monkeypatch.setattr(topologies, "local", lambda: less)
    resume(config, tmp_path)
    *_, second = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert second["remat"]["policy"] == "full" and policy in second["remat"]["too_large"]
    err = capsys.readouterr().err
    assert f"since the start before: model.remat {policy} before, full now" in err


def test_a_run_that_fits_nowhere_ends_before_it_loads_weights(
    corpus, tmp_path, monkeypatch, capsys
):
    tiny = dataclasses.replace(topologies.local(), hbm_bytes=1000.0)
    monkeypatch.setattr(topologies, "local", lambda: tiny)
    config = ten_steps(corpus, model__remat="auto")
    line = one_line_error(config, tmp_path / "run", capsys)
    assert line.startswith("error: a training step needs 0.0 GiB per device even with remat full")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # minutes a slice, and only where its compiler is installed
@pytest.mark.parametrize(
    ("topology", "policy"),
    [
        ("v5e-16", "full"),
        ("v6e-8", "context"),
        ("v5p-8", "context"),
        ("h100-8", "context"),
        ("h200-1", "context"),
    ],
)
def test_what_7b_takes_where(topology, policy, tmp_path):
    """docs/experiments/remat.md has what each needs."""
    command = [sys.executable, "-m", "alpacare_jax.plan", f"--topology={topology}"]
    command += ["--config=configs/alpacare.py:llama-7b", "--config.model.remat=auto"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_CLIENT_MEM_FRACTION": "0.95"}
    output = tmp_path / "plan.json"
    done = subprocess.run([*command, f"--output={output}"], env=env, capture_output=True, text=True)
    if re.search(r"pip install 'alpacare-jax\[(tpu|gpu)\]'", done.stderr):
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert not done.returncode, done.stderr
    assert json.loads(output.read_text())["plan"]["remat"].startswith(f"remat {policy} (auto)")
