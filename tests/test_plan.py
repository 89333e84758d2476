"""Plans: every size compiles with nothing allocated; what is counted is what is computed."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import REPOSITORY
from test_train import run_config

from alpacare_jax import llama, metrics, params, plan, sharding, topology
from alpacare_jax.run_config import RunConfig
from configs import alpacare
from contract import sections

WORK = plan.Workload(num_examples=100, example_tokens=60, answer_share=0.5)
TINY = llama.VARIANTS["tiny"]


def tiny_config(**changes) -> RunConfig:
    return run_config(
        Path(),
        **{"data__row_multiple": 128, "data__max_length": 128, "data__max_row_length": 128}
        | changes,
    )


def of_variant(variant: str, **changes) -> RunConfig:
    config = alpacare.get_config("llama-7b")
    config.update_from_flattened_dict({"model.variant": variant} | changes)
    return sections.build(RunConfig, config.to_dict())


@pytest.mark.parametrize(
    "variant",
    [
        v if v in ("tiny", "llama-7b") else pytest.param(v, marks=pytest.mark.slow)
        for v in llama.VARIANTS
    ],
)
def test_every_size_compiles_on_8_devices_with_nothing_allocated(variant):
    shape = llama.VARIANTS[variant]
    limit = {"data.max_length": 512}
    if shape.num_key_value_heads % 2:
        limit |= {"sharding.rules.heads": "", "sharding.rules.kv_heads": ""}
    config = of_variant(variant, **limit | {"sharding.tensor": 2})
    mesh = sharding.make_mesh(config.sharding)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    before = {id(array) for array in jax.live_arrays()}
    batch = plan.typical_batch(config, shape, mesh, plan.Workload(52_002, 200, 0.5))
    compiled = plan.trace_step(config, shape, mesh, batch).lower().compile()
    assert not [a for a in jax.live_arrays() if id(a) not in before and a.nbytes > 10**6]
    state = 3 * 4 * params.count(shape)  # weights and two moments in float32
    held = compiled.memory_analysis().argument_size_in_bytes
    held -= sum(array.nbytes for array in batch.arrays.values()) // 4  # rows are on 4 devices
    # A KV head count or vocabulary that is not spread is held by more devices than one.
    assert state / 8 <= held < state / 8 * (2.1 if limit.keys() > {"data.max_length"} else 1.2)


@pytest.fixture(scope="module")
def traced():
    """(remat, micro-batches) -> jaxpr, loop lengths and batch of the tiny model's step."""

    def trace(remat: str, microbatch_tokens: int):
        config = tiny_config(model__remat=remat, train__microbatch_tokens=microbatch_tokens)
        config = dataclasses.replace(
            config, sharding=dataclasses.replace(config.sharding, data=1, fsdp=-1)
        )
        mesh = sharding.make_mesh(config.sharding, jax.devices()[:1])
        batch = plan.typical_batch(config, TINY, mesh, WORK)
        step = plan.trace_step(config, TINY, mesh, batch)
        return step, plan.loop_trips(config, mesh, batch), batch

    return trace


def by_hand(batch, remat: bool) -> float:
    """Products of one step: forward once or twice, backward twice as much; see `metrics`."""
    sizes = TINY.sizes
    computed = batch.num_computed
    T = batch.arrays["tokens"].shape[2]
    layers = params.count(TINY) - 2 * sizes["V"] * sizes["D"]
    norms = sizes["L"] * 2 * sizes["D"] + sizes["D"]
    forward = 2 * (layers - norms) * computed
    forward += sizes["L"] * 4 * sizes["N"] * sizes["H"] * T * computed  # whole squares
    return (4 if remat else 3) * forward


def test_matrix_products_are_counted_loops_and_recomputation_included(traced):
    for remat in ("none", "full"):
        for tokens in (128, 256):
            step, trips, batch = traced(remat, tokens)
            counted = plan.matmul_flops(step.jaxpr.jaxpr, trips)
            R = batch.arrays["tokens"].shape[1]
            most = max(np.count_nonzero(batch.arrays["weights"], axis=-1).flat)
            chunk = 64 // R
            loss = 3 * 2 * TINY.sizes["V"] * TINY.sizes["D"]
            loss *= math.ceil(most / chunk) * chunk * R * batch.num_micro
            # With remat XLA need not repeat the last product of a layer: nothing depends on it.
            assert counted == pytest.approx(by_hand(batch, remat == "full") + loss, rel=0.12)
    assert traced("none", 128)[2].num_micro > traced("none", 256)[2].num_micro


def test_a_loop_of_unknown_length_is_an_error(traced):
    step, _, _ = traced("none", 128)
    with pytest.raises(ValueError, match="accumulate has no known length"):
        plan.matmul_flops(step.jaxpr.jaxpr, lambda name: None)


@pytest.fixture(scope="module")
def local_plan():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "peak_flops", lambda: (1e10, "table"))
        where = topology.describe("local")
    config = tiny_config(train__batch_size=32)
    return plan.make_plan(config, where, WORK, price=2.0), where


def test_a_plan_for_the_devices_that_are_there(local_plan):
    found, _ = local_plan
    assert found["fits"] and found["devices"] == found["chips"] == 8
    assert found["mesh"] == {"fsdp": 8}
    assert found["model_flops"] < found["hardware_flops"]
    kinds = {c["kind"]: c for c in found["collectives"]}
    assert kinds["all-gather"]["axes"] == "fsdp"
    assert found["bound"] == "compute", "nothing else is known of a CPU"
    assert found["step_seconds"] == found["hardware_flops"] / 8 / 1e10
    assert found["mfu_ceiling"] == pytest.approx(found["model_flops"] / found["hardware_flops"])
    assert found["steps"] == 100 // 32 * 2, "two epochs"
    assert found["cost"] == pytest.approx(found["hours"] * 8 * 2.0)


def test_the_table_says_it_all(local_plan):
    text = plan.table(local_plan[0])
    for part in (
        "fits",
        "headroom",
        "arguments",
        "temporaries",
        "compile time",
        "model FLOPs",
        "hardware FLOPs",
        "HBM traffic",
        "all-gather",
        "over fsdp (8)",
        "bound by",
        "MFU ceiling",
        "tokens/s",
        "whole run",
        "cost",
    ):
        assert part in text, part


def test_adafactor_leaves_little_beside_the_weights(local_plan):
    config = tiny_config(train__batch_size=32, optimizer__name="adafactor")
    small = plan.make_plan(config, local_plan[1], WORK, None)
    moments = 2 * 4 * params.count(TINY) / 8
    saved = local_plan[0]["argument_bytes"] - small["argument_bytes"]
    assert 0.9 * moments < saved < moments
    assert "optimizer         adafactor" in plan.table(small)


def test_what_the_host_holds_is_told_and_takes_its_time(local_plan):
    """Numbers as a TPU's compiler gives them; a CPU is its own host and counts nothing apart."""
    plain, where = local_plan
    assert plain["host_bytes"] == 0 and "host" not in plain["seconds"]
    sizes = ("argument", "output", "alias", "temp", "generated_code")
    sizes = dict.fromkeys([f"{name}_size_in_bytes" for name in sizes], 100)
    sizes |= {"host_argument_size_in_bytes": 5 * 10**9, "host_temp_size_in_bytes": 10**9}
    found = plan.memory(types.SimpleNamespace(**sizes), where.hbm_bytes)
    assert (found["needed_bytes"], found["host_bytes"]) == (300, 6 * 10**9)
    where = dataclasses.replace(where, host_rate=1e6)
    hosted = plain | found
    hosted |= plan.roofline(hosted, where, tokens=1000)
    assert (hosted["bound"], hosted["seconds"]["host"]) == ("host", 6000)
    assert "host memory       5.59 GiB a device" in plan.table(hosted)
    assert "host time         6000.000 s a step" in plan.table(hosted)


def test_what_does_not_fit(local_plan):
    where = dataclasses.replace(local_plan[1], hbm_bytes=1000.0)
    found = plan.make_plan(tiny_config(), where, WORK, price=None)
    assert not found["fits"]
    assert "fits              NO" in plan.table(found)
    assert "cost" not in found


def test_a_search_ranks_what_fits(local_plan, monkeypatch, capsys):
    def planned(config, where, work, price):
        size = config.train.microbatch_tokens * (3 if config.model.remat == "dots" else 1)
        found = dict(local_plan[0]) | {"fits": size < 20_000, "needed_bytes": size}
        found |= {"available_bytes": 20_000, "mfu_ceiling": size / 1e5}
        return found

    monkeypatch.setattr(plan, "make_plan", planned)
    config = tiny_config(train__batch_size=512, data__max_row_length=1024, data__max_length=1024)
    config = dataclasses.replace(
        config, sharding=dataclasses.replace(config.sharding, data=1, fsdp=-1)
    )
    work = dataclasses.replace(WORK, example_tokens=512)
    ranked = plan.search(config, local_plan[1], work, None)
    fits = [found["fits"] for found in ranked]
    assert fits == sorted(fits, reverse=True) and True in fits and False in fits
    ceilings = [found["mfu_ceiling"] for found in ranked if found["fits"]]
    assert ceilings == sorted(ceilings, reverse=True)
    assert {found["changes"]["tensor"] for found in ranked} == {1, 2, 4}
    assert capsys.readouterr().err.count("\n") == len(ranked), "a line as each is found"
    assert "does not fit | tensor" in plan.summary(ranked[-1])
    assert "headroom | tensor" in plan.summary(ranked[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9-8", "unknown topology 'v9-8'; write e.g. v5e-16"),
        ("v5e-7", "no slice v5e-7; choose from v5e-1, v5e-4"),
        ("v4-4", "no slice v4-4; choose from v4-8"),
        ("v5e", "unknown topology"),
    ],
)
def test_slices_that_do_not_exist(name, message):
    with pytest.raises(ValueError, match=message):
        topology.describe(name)


def test_without_libtpu_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs libtpu: pip install 'alpacare-jax\[tpu\]'"):
        topology.describe("v5e-16")


def test_the_command(tmp_path):
    flags = ["--config=configs/quickstart.py", "--topology=local", "--example_tokens=60"]
    flags += ["--config.model.variant=tiny", "--config.train.batch_size=8", "--num_examples=80"]
    done = subprocess.run(
        [*(sys.executable, "-m", "alpacare_jax.plan"), *flags, f"--output={tmp_path}/plan.json"],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "mesh              fsdp 4" in done.stdout
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["plan"]["steps"] == 10 and written["config"]["model"]["variant"] == "tiny"


# With the TPU's own compiler, where libtpu is installed.


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["llama3.2-1b", "llama-7b"])
def test_a_tpu_slice(variant):
    pytest.importorskip("libtpu", reason="needs libtpu: the extra [tpu]")
    where = topology.describe("v5e-16")
    config = of_variant(variant, **{"model.remat": "full", "train.microbatch_tokens": 4096})
    found = plan.make_plan(config, where, plan.Workload(52_002, 300, 0.6), None)
    assert found["fits"] and found["mfu_ceiling"] > 0.5
    assert found["collectives"][0]["axes"] == "fsdp"
