"""Searches: what is tried, and how it is ranked."""

import dataclasses
import re

import jax
import pytest

from alpacare_jax.planning import generation, programs, remat, topologies, training
from alpacare_jax.planning import search as plan_search
from tests.alpacare_jax.planning.test_training import WORK, tiny_config

TOPOLOGY = topologies.Topology("ours", jax.devices(), 8, 1e10, 1e9, 1e9, 1e9)


def planned(speed: float, size: float, **more) -> dict:
    found = {"fits": size < 20_000, "needed_bytes": size, "available_bytes": 20_000.0}
    return found | {"tokens_per_second": speed, "step_seconds": 1.0, "bound": "memory"} | more


@pytest.fixture(autouse=True)
def two_policies(monkeypatch):
    """`dots` keeps three times as much as `full`, next to nothing, and is faster."""
    found = [remat.Candidate("dots", 3.0, 1.0, 1.0), remat.Candidate("full", 1.0, 2.0, 2.0)]
    monkeypatch.setattr(remat, "reckon", lambda *arguments: found)


@pytest.fixture
def config():
    config = tiny_config(train__batch_size=512, data__max_row_length=1024, data__max_length=1024)
    spread = dataclasses.replace(config.sharding, data=1, fsdp=-1)
    return dataclasses.replace(config, sharding=spread)


def search(config, room: float, monkeypatch) -> list[dict]:
    """Ranked plans of made-up programs, of `room` for a program of a tensor axis of 1."""

    def plan(config, topology, workload):
        found = config.optimizer
        size = config.train.microbatch_tokens * (3 if config.model.remat == "dots" else 1)
        size += {"adamw": 8000, "adafactor": 0}[found.name]
        size -= 2000 * (found.first_moment == "bfloat16") + 7000 * found.offload
        return planned(size, size * 20_000 / room * config.sharding.tensor, mfu_ceiling=0.5)

    monkeypatch.setattr(training, "make_plan", plan)
    workload = dataclasses.replace(WORK, example_tokens=512)
    return plan_search.rank(plan_search.training_plans(config, TOPOLOGY, workload))


def test_meshes_remat_micro_batches_and_optimizers_of_training(config, monkeypatch, capsys):
    ranked = search(config, 15_000, monkeypatch)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("tensor 4: layers.self_attn.k_proj: axis 'kv_heads' of length 2")
    assert len([line for line in lines if line[0].isdigit()]) == len(ranked), "as each is found"
    fits = [found["fits"] for found in ranked]
    assert fits == sorted(fits, reverse=True) and True in fits and False in fits
    speeds = [found["tokens_per_second"] for found in ranked if found["fits"]]
    assert speeds == sorted(speeds, reverse=True)
    assert {found["changes"]["tensor"] for found in ranked} == {1, 2}
    used = {plan_search.summary(p).partition("optimizer ")[2] for p in ranked if p["fits"]}
    assert used == {
        "adamw, first_moment float32",
        "adamw, first_moment bfloat16",
        "adamw, first_moment float32, offload True",
    }
    assert "does not fit | tensor" in plan_search.summary(ranked[-1])
    assert "MFU ceiling" in plan_search.summary(ranked[0])
    assert "headroom | tensor" in plan_search.summary(ranked[0])


@pytest.mark.parametrize("room", [1, 3_000, 6_000, 9_000, 12_000, 15_000, 20_000, 100_000])
def test_programs_are_as_few_as_said(config, room, monkeypatch, capsys):
    ranked = search(config, room, monkeypatch)
    limit = re.search(r"at most (\d+) programs", capsys.readouterr().err)
    assert 0 < len(ranked) <= int(limit[1]) == 2 * (6 + 2 * 4)
    shapes = [[p["changes"][k] for k in ("tensor", "remat", "microbatch_tokens")] for p in ranked]
    fitting = [shape for shape, p in zip(shapes, ranked, strict=True) if p["fits"]]
    assert len(fitting) == len({tuple(shape) for shape in fitting}), "one optimizer is enough"
    for p in ranked:
        if not p["fits"]:  # what takes more was left out
            assert p["changes"] | {"remat": "dots"} not in [
                q["changes"] for q in ranked if q is not p
            ]


def test_what_cannot_fit_is_not_compiled(config, monkeypatch, capsys):
    least = programs.least_bytes(programs.make_program(config, TOPOLOGY.devices))
    topology = dataclasses.replace(TOPOLOGY, hbm_bytes=least - 1)
    monkeypatch.setattr(training, "make_plan", lambda *a: planned(1.0, 1.0, mfu_ceiling=0.5))
    ranked = plan_search.rank(plan_search.training_plans(config, topology, WORK))
    of_one = [p["changes"] for p in ranked if p["changes"]["tensor"] == 1]
    assert {changes["first_moment"] for changes in of_one} == {"bfloat16"}
    line = "tensor 1, adamw, first moment in float32, moments in device memory: does not fit"
    assert line in capsys.readouterr().err
    assert {changes["remat"] for changes in of_one} == {"full", "dots"}
    kept = [remat.Candidate("dots", 1e6, 1.0, 1.0), remat.Candidate("full", 1.0, 2.0, 2.0)]
    monkeypatch.setattr(remat, "reckon", lambda *arguments: kept)
    ranked = plan_search.rank(plan_search.training_plans(config, topology, WORK))
    assert {p["changes"]["remat"] for p in ranked} == {"full"}
    topology = dataclasses.replace(TOPOLOGY, hbm_bytes=100)
    assert plan_search.rank(plan_search.training_plans(config, topology, WORK)) == []


def test_what_plans_alike_is_planned_once(monkeypatch):
    monkeypatch.setattr(training, "make_plan", lambda *a: planned(1.0, 1.0, mfu_ceiling=0.5))
    ranked = plan_search.rank(plan_search.training_plans(tiny_config(), TOPOLOGY, WORK))
    assert {found["changes"]["microbatch_tokens"] for found in ranked} == {2048}


def test_meshes_and_slots_of_generation(monkeypatch, capsys):
    def plan(config, topology, workload):
        assert config.sharding.fsdp == 1
        if config.sharding.tensor == 8:
            raise ValueError("heads do not divide")
        step = {"step_seconds": 0.01, "bound": "memory"}
        return planned(workload.slots * config.sharding.tensor, 100 * workload.slots, decode=step)

    monkeypatch.setattr(generation, "make_plan", plan)
    workload = generation.GenerationWorkload(100, 10, 20, slots=16)
    ranked = plan_search.rank(plan_search.generation_plans(tiny_config(), TOPOLOGY, workload))
    assert [found["changes"] for found in ranked if found["fits"]] == [
        {"tensor": tensor, "slots": slots} for tensor, slots in ((4, 64), (2, 64))
    ] + [{"tensor": 1, "slots": 64}, {"tensor": 4, "slots": 16}] + [
        {"tensor": tensor, "slots": 16} for tensor in (2, 1)
    ]
    assert "heads do not divide" in capsys.readouterr().err
    assert plan_search.summary(ranked[0]).startswith("256 tokens/s | 0.0100 s per step")


def test_other_errors_are_not_passed_over():
    def broken():
        raise KeyError("a fault of ours")

    with pytest.raises(KeyError):
        plan_search.attempt({}, broken)
