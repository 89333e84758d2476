"""Searches: what is tried, and how it is ranked."""

import dataclasses

import jax
import pytest
from test_plan_training import WORK, tiny_config

from alpacare_jax import plan_generation, plan_search, plan_training, topology

WHERE = topology.Topology("ours", jax.devices(), 8, 1e10, 1e9, 1e9, 1e9)


def planned(speed: float, size: float, **more) -> dict:
    found = {"fits": size < 20_000, "needed_bytes": size, "available_bytes": 20_000.0}
    return found | {"tokens_per_second": speed, "step_seconds": 1.0, "bound": "memory"} | more


def test_meshes_remat_and_micro_batches_of_training(monkeypatch, capsys):
    def plan(config, where, work, price):
        size = config.train.microbatch_tokens * (3 if config.model.remat == "dots" else 1)
        return planned(size / 10, size, mfu_ceiling=size / 1e5)

    monkeypatch.setattr(plan_training, "make_plan", plan)
    config = tiny_config(train__batch_size=512, data__max_row_length=1024, data__max_length=1024)
    config = dataclasses.replace(
        config, sharding=dataclasses.replace(config.sharding, data=1, fsdp=-1)
    )
    work = dataclasses.replace(WORK, example_tokens=512)
    ranked = plan_search.rank(plan_search.training(config, WHERE, work, None))
    fits = [found["fits"] for found in ranked]
    assert fits == sorted(fits, reverse=True) and True in fits and False in fits
    speeds = [found["tokens_per_second"] for found in ranked if found["fits"]]
    assert speeds == sorted(speeds, reverse=True)
    assert {found["changes"]["tensor"] for found in ranked} == {1, 2, 4}
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line[0].isdigit()]) == len(ranked), "as each is found"
    assert "does not fit | tensor" in plan_search.summary(ranked[-1])
    assert "MFU ceiling" in plan_search.summary(ranked[0])
    assert "headroom | tensor" in plan_search.summary(ranked[0])


def test_what_plans_alike_is_planned_once(monkeypatch, capsys):
    monkeypatch.setattr(plan_training, "make_plan", lambda *a: planned(1.0, 1.0, mfu_ceiling=0.5))
    ranked = plan_search.rank(plan_search.training(tiny_config(), WHERE, WORK, None))
    assert 0 < len(ranked) < 3 * 2 * 3
    assert "as with fewer micro-batch tokens" in capsys.readouterr().err


def test_meshes_and_slots_of_generation(monkeypatch, capsys):
    def plan(config, where, work, price):
        assert config.sharding.fsdp == 1 and price == 3.0
        if config.sharding.tensor == 8:
            raise ValueError("heads do not divide")
        step = {"step_seconds": 0.01, "bound": "memory"}
        return planned(work.slots * config.sharding.tensor, 100 * work.slots, decode=step)

    monkeypatch.setattr(plan_generation, "make_plan", plan)
    work = plan_generation.Workload(100, 10, 20, slots=16)
    ranked = plan_search.rank(plan_search.generation(tiny_config(), WHERE, work, 3.0))
    assert [found["changes"] for found in ranked if found["fits"]] == [
        {"tensor": tensor, "slots": slots} for tensor, slots in ((4, 64), (2, 64))
    ] + [{"tensor": 1, "slots": 64}, {"tensor": 4, "slots": 16}] + [
        {"tensor": tensor, "slots": 16} for tensor in (2, 1)
    ]
    assert "heads do not divide" in capsys.readouterr().err
    assert plan_search.summary(ranked[0]).startswith("256 tokens/s | 0.0100 s a step")


def test_other_errors_are_not_passed_over():
    def broken():
        raise KeyError("a fault of ours")

    with pytest.raises(KeyError):
        plan_search.rank([({}, broken)])
