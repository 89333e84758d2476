"""Plans of training: every size compiles with nothing allocated; slices need libtpu."""

import dataclasses
import math
import types
from pathlib import Path

import jax
import pytest

from alpacare_jax.model import params
from alpacare_jax.model.config import VARIANTS
from alpacare_jax.planning import hlo, programs, remat, roofline, table, topologies, training
from alpacare_jax.training import metrics
from alpacare_jax.training.config import RunConfig
from common import sections
from configs import alpacare
from tests.support.training import run_config

pytestmark = pytest.mark.usefixtures("quickly_compiled")

WORK = training.TrainingWorkload(num_examples=100, example_tokens=60, answer_share=0.5)
MEDICAL = training.TrainingWorkload(52_002, 300, 0.6)
TINY = VARIANTS["tiny"]


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


@pytest.mark.parametrize("variant, adapted", [("llama-7b", 39_976_960), ("llama-13b", 62_586_880)])
def test_of_a_frozen_base_only_the_weights_are_held(variant, adapted):
    """nf4: 4 bits a weight, 8 a block of 64, 32 a block of 256 scales; embeddings in bfloat16."""
    lora = {"lora.rank": 16, "lora.base": "nf4", "model.dtype": "bfloat16"}
    program = programs.make_program(of_variant(variant, **lora), jax.devices()[:1])
    assert params.count(program.trained) == adapted
    rows = {row.path: row for row in params.weight_specs(program.model_config)}
    sizes = {path: params.weight_shape(row, program.model_config) for path, row in rows.items()}
    projections = sum(math.prod(size) for path, size in sizes.items() if path.endswith("_proj"))
    rest = params.count(program.model_config) - projections
    base = projections * (4 + 8 / 64 + 32 / 64 / 256) / 8 + 2 * rest
    trained = 4 * 4 * adapted  # weights, gradients and two moments in float32
    assert programs.least_bytes(program) == pytest.approx(base + trained, rel=1e-3)
    assert base + trained < {"llama-7b": 4.6e9, "llama-13b": 8.6e9}[variant]


@pytest.mark.parametrize(
    "variant",
    [v if v in ("tiny", "llama-7b") else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS],
)
def test_every_size_compiles_on_8_devices_with_nothing_allocated(variant):
    shape = VARIANTS[variant]
    limit = {"data.max_length": 512}
    if shape.num_key_value_heads % 2:
        limit |= {"sharding.rules.heads": "", "sharding.rules.kv_heads": ""}
    config = of_variant(variant, **limit | {"sharding.tensor": 2})
    program = remat.with_policy(programs.make_program(config, jax.devices()), "full")
    assert dict(program.mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    before = {id(array) for array in jax.live_arrays()}
    batch = training.typical_batch(program, training.TrainingWorkload(52_002, 200, 0.5))
    compiled = programs.trace_step(program, batch.arrays).lower().compile()
    assert not [a for a in jax.live_arrays() if id(a) not in before and a.nbytes > 10**6]
    state = 3 * 4 * params.count(shape)  # weights and two moments in float32
    held = compiled.memory_analysis().argument_size_in_bytes
    held -= sum(array.nbytes for array in batch.arrays.values()) // 4  # rows are on 4 devices
    # A KV head count or vocabulary that is not spread is held by more devices than one.
    assert state / 8 <= held < state / 8 * (2.1 if limit.keys() > {"data.max_length"} else 1.2)


def test_a_step_of_pairs_is_planned():
    config = tiny_config(preference__beta=0.1, data__max_row_length=256)
    program = programs.make_program(config, jax.devices()[:1])
    batch = training.typical_batch(program, WORK)
    assert len(batch.records) == config.train.batch_size
    assert batch.arrays["segments"].max() % 2 == 0
    report = programs.trace_step(program, batch.arrays).out_info[1]
    assert {"loss", "pair_accuracy", "reward_margin"} <= report.keys()


@pytest.fixture(scope="module")
def local_plan():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "peak_flops", lambda: (1e10, "table"))
        topology = topologies.describe("local")
    config = tiny_config(train__batch_size=32)
    found = training.make_plan(config, topology, WORK)
    return found | roofline.run_cost(found, 2.0), topology


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
    text = table.training_table(local_plan[0])
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
        "over fsdp (8 devices)",
        "bound by",
        "MFU ceiling",
        "tokens/s",
        "whole run",
        "cost",
    ):
        assert part in text, part


def test_adafactor_leaves_little_beside_the_weights(local_plan):
    config = tiny_config(train__batch_size=32, optimizer__name="adafactor")
    small = training.make_plan(config, local_plan[1], WORK)
    moments = 2 * 4 * params.count(TINY) / 8
    saved = local_plan[0]["argument_bytes"] - small["argument_bytes"]
    assert 0.9 * moments < saved < moments
    assert "optimizer             adafactor" in table.training_table(small)


@pytest.mark.parametrize(
    "changes, of_a_weight",
    [
        ({}, 16),
        ({"optimizer__first_moment": "bfloat16"}, 14),
        ({"optimizer__name": "adafactor"}, 8),
    ],
)
def test_what_a_device_needs_at_least(local_plan, changes, of_a_weight):
    config = tiny_config(train__batch_size=32, **changes)
    least = programs.least_bytes(programs.make_program(config, jax.devices()))
    assert least == pytest.approx(of_a_weight * params.count(TINY) / 8, rel=0.1)
    if not changes:
        assert least < local_plan[0]["needed_bytes"]
        state = least - 4 * params.count(TINY) / 8  # without gradients; arguments have rows too
        assert 0 <= local_plan[0]["argument_bytes"] - state < 0.1 * state


def test_what_the_host_holds_is_told_and_takes_its_time(local_plan):
    """Numbers as a TPU's compiler gives them; a CPU is its own host and counts nothing apart."""
    plain, topology = local_plan
    assert plain["host_bytes"] == 0 and "host" not in plain["seconds"]
    sizes = ("argument", "output", "alias", "temp", "generated_code")
    sizes = dict.fromkeys([f"{name}_size_in_bytes" for name in sizes], 100)
    sizes |= {"host_argument_size_in_bytes": 5 * 10**9, "host_temp_size_in_bytes": 10**9}
    found = roofline.memory_needs(types.SimpleNamespace(**sizes), topology.hbm_bytes)
    assert (found["needed_bytes"], found["host_bytes"]) == (300, 6 * 10**9)
    topology = dataclasses.replace(topology, host_rate=1e6)
    hosted = plain | found
    hosted |= roofline.least_seconds(hosted, topology, num_sharing=8)
    assert (hosted["bound"], hosted["seconds"]["host"]) == ("host", 6000)
    assert "host memory           5.59 GiB per device" in table.training_table(hosted)
    assert "host time           6000.000 s" in table.training_table(hosted)


def test_what_does_not_fit(local_plan):
    topology = dataclasses.replace(local_plan[1], hbm_bytes=1000.0)
    found = training.make_plan(tiny_config(), topology, WORK)
    assert not found["fits"]
    assert "fits                  NO" in table.training_table(found)
    assert "cost" not in found


def test_programs_that_cannot_be_parsed_leave_memory_and_flops(local_plan, monkeypatch, capsys):
    def parse(text, trips):
        raise ValueError("unknown trip count of the loop 'x'")

    monkeypatch.setattr(hlo, "parse", parse)
    config = tiny_config(train__batch_size=32)
    found = training.make_plan(config, local_plan[1], WORK)
    same = ("needed_bytes", "hardware_flops", "model_flops", "mfu_ceiling", "hours", "fits")
    assert {key: found[key] for key in same} == {key: local_plan[0][key] for key in same}
    assert found["seconds"].keys() == {"compute"} and found["collectives"] == []
    line = "the compiled program could not be parsed (unknown trip count of the loop 'x')"
    assert line in capsys.readouterr().err
    assert "traffic               unknown: unknown trip count" in table.training_table(found)


# With the TPU's own compiler, where libtpu is installed.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "slice_or_host"),
    [(size, name) for size, names in alpacare.PLANNED.items() for name in names],
)
def test_the_recipes_fit_where_their_config_says(size, slice_or_host):
    """Ten programs, a minute or two each; TPUs and GPUs have a compiler each."""
    compiler = "jax_cuda13_plugin" if slice_or_host.startswith("h") else "libtpu"
    pytest.importorskip(compiler, reason="needs the extra [tpu], or [gpu] for GPUs")
    topology = topologies.describe(slice_or_host)
    config = of_variant(f"llama-{size}", **alpacare.PLANNED[size][slice_or_host])
    found = training.make_plan(config, topology, MEDICAL)
    assert found["fits"] and found["mfu_ceiling"] > 0.4


@pytest.mark.slow
def test_a_tpu_slice():
    pytest.importorskip("libtpu", reason="needs libtpu: the extra [tpu]")
    topology = topologies.describe("v5e-16")
    config = of_variant("llama3.2-1b")
    found = training.make_plan(config, topology, MEDICAL)
    assert found["fits"] and found["mfu_ceiling"] > 0.5
    assert found["collectives"][0]["axes"] == "fsdp"


@pytest.mark.slow
def test_two_tpu_slices_send_gradients_over_the_data_centre_network():
    pytest.importorskip("libtpu", reason="needs libtpu: the extra [tpu]")
    topology = topologies.describe("2xv5e-4")
    assert (topology.slices, topology.chips, topology.dcn_rate) == (2, 8, 3.125e9)
    config = of_variant("llama3.2-1b", **{"sharding.data": 2, "train.microbatch_tokens": 8192})
    found = training.make_plan(config, topology, MEDICAL)
    between = [c for c in found["collectives"] if c["between_slices"]]
    sent = sum(c["num_bytes"] for c in between)
    assert {c["axes"] for c in between} == {"data"} and {c["group"] for c in between} == {2}
    assert found["seconds"]["between slices"] == sent / 3.125e9
    # Each chip's quarter of the gradients, in bfloat16 or float32, once a micro-batch.
    quarter = found["micro_batches"] * found["parameters"] / 4
    assert 2 * quarter < sent < 4.5 * quarter
    assert "over data (DCN, between slices)" in table.training_table(found)


# With XLA's compiler for GPUs, where JAX's CUDA packages are installed.


@pytest.mark.slow
def test_7b_on_one_gpu():
    pytest.importorskip("jax_cuda13_plugin", reason="needs JAX's CUDA packages: the extra [gpu]")
    topology = topologies.describe("h200-1")
    found = training.make_plan(of_variant("llama-7b"), topology, MEDICAL)
    assert found["fits"] and found["mfu_ceiling"] > 0.5
    state = 12 * found["parameters"]  # float32 weights and moments
    assert state < found["argument_bytes"] < 1.01 * state
    xla = training.make_plan(
        of_variant("llama-7b", **{"model.attention": "xla"}), topology, MEDICAL
    )
    assert found["hardware_flops"] == pytest.approx(xla["hardware_flops"], rel=0.02)
