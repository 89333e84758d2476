"""Plans of generation: what the engine's own programs need, counted by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from alpacare_jax.distributed import sharding
from alpacare_jax.inference import ragged_attention
from alpacare_jax.inference.programs import BURST
from alpacare_jax.model import params
from alpacare_jax.planning import generation, roofline, table, topologies
from alpacare_jax.training import metrics
from alpacare_jax.training.config import RunConfig
from tests.alpacare_jax.planning.test_training import TINY, of_variant, tiny_config

pytestmark = pytest.mark.usefixtures("quickly_compiled")

WORK = generation.GenerationWorkload(prompts=20, prompt_tokens=100, new_tokens=28, slots=8)
CACHE_LENGTH = 128  # 100 + 28, whole buckets


def on_mesh(data: int, fsdp: int, tensor: int) -> RunConfig:
    config = tiny_config()
    sizes = dataclasses.replace(config.sharding, data=data, fsdp=fsdp, tensor=tensor)
    return dataclasses.replace(config, sharding=sizes)


@pytest.fixture(scope="module")
def topology() -> topologies.Topology:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "peak_flops", lambda: (1e10, "table"))
        here = topologies.describe("local")
    return dataclasses.replace(here, hbm_rate=1e9, ici_rate=1e8)


@pytest.fixture(scope="module")
def plan(topology):
    found = generation.make_plan(on_mesh(4, 1, 2), topology, WORK)
    return found | roofline.run_cost(found, 2.0)


def test_memory_is_weights_cache_and_what_is_worked_with(plan):
    sizes = TINY.sizes
    cache = 2 * sizes["L"] * WORK.slots * CACHE_LENGTH * sizes["K"] * sizes["H"] * 4
    adjusting = 2 * WORK.slots * sizes["V"] * 4  # counts of tokens and biases, on every device
    expected = cache / 8 + adjusting
    assert plan["cache_bytes"] == pytest.approx(expected, rel=0.05), "rows over 4, heads over 2"
    matrices = params.count(TINY) * 4
    assert matrices / 2 < plan["weight_bytes"] < 1.05 * matrices / 2, "norms are whole"
    parts = ("weight_bytes", "cache_bytes", "temporary_bytes", "code_bytes")
    assert plan["needed_bytes"] == sum(plan[part] for part in parts)
    assert plan["fits"] and plan["temporary_bytes"] >= plan["cache_bytes"] // 2


def products(tokens: int, keys: int) -> float:
    """FLOPs of a forward pass over so many tokens, each seeing so many keys, less the head's."""
    sizes = TINY.sizes
    norms = sizes["L"] * 2 * sizes["D"] + sizes["D"]
    matrices = params.count(TINY) - 2 * sizes["V"] * sizes["D"] - norms
    return tokens * (2 * matrices + sizes["L"] * 4 * sizes["N"] * sizes["H"] * keys)


def test_products_of_one_step_and_of_one_prompt(plan):
    head = 2 * TINY.sizes["V"] * TINY.sizes["D"]
    step = products(WORK.slots, CACHE_LENGTH) + WORK.slots * head
    assert plan["decode"]["hardware_flops"] == pytest.approx(step)
    # 100 tokens fill four pieces; each could be a prompt's last.
    prompt = products(CACHE_LENGTH, CACHE_LENGTH) + 4 * head
    assert plan["prefill"]["hardware_flops"] == pytest.approx(prompt)
    seconds = plan["decode"]["seconds"]["compute"]
    assert seconds == pytest.approx(step / 8 / 1e10), "rows and heads are shared by all"
    seconds = plan["prefill"]["seconds"]["compute"]
    assert seconds == pytest.approx(prompt / 2 / 1e10), "a prompt has no rows to share"


def test_a_step_reads_weights_and_cache_once_or_a_little_more(plan):
    least = plan["weight_bytes"] + plan["cache_bytes"]
    embedding = TINY.sizes["V"] * TINY.sizes["D"] * 4 / 2  # of which only a few rows are read
    assert plan["decode"]["hbm_traffic_bytes"] > least - embedding


def test_a_step_reads_the_cache_as_far_as_rows_reach(plan):
    sizes = TINY.sizes
    keys_and_values = 2 * sizes["L"] * WORK.slots * CACHE_LENGTH * sizes["K"] * sizes["H"] * 4 / 8
    assert plan["decode"]["cache_traffic_bytes"] >= keys_and_values, "half-way, the only block"
    assert "  of the cache" in table.generation_table(plan)


@pytest.mark.parametrize("keys", [64, 200])
def test_the_kernel_of_gpus_reads_and_multiplies_whole_blocks(keys):
    """A decode step of 3 rows, 2 heads of keys and 4 of queries, 16 numbers each."""
    q, k = jnp.zeros((3, 1, 4, 16), jnp.bfloat16), jnp.zeros((2, 5, 2, 256, 16), jnp.bfloat16)
    rows = jnp.arange(3)
    traced = jax.jit(ragged_attention.attend).trace(q, k, k, jnp.int32(0), rows, rows)
    blocks, block = -(-keys // ragged_attention.KERNEL_KEYS), ragged_attention.KERNEL_KEYS
    products = 3 * 2 * blocks * 2 * (2 * 16 * block * 16)  # 2 queries, padded to 16
    assert roofline.traced_flops(traced, generation.loop_trips(keys, 64)) == products
    mesh = sharding.make_mesh(on_mesh(-1, 1, 1).sharding, jax.devices()[:1])
    read = generation.kernel_bytes({"k": k, "v": k}, 3, keys, mesh)
    assert read == {"ragged_attention": 3 * blocks * block * 2 * 2 * 16 * 2}


@pytest.mark.parametrize(("weights", "bits"), [("int8", 8), ("nf4", 4)])
def test_quantised_weights_take_less_memory(topology, plan, weights, bits):
    config, work = on_mesh(4, 1, 2), dataclasses.replace(WORK, weights=weights)
    mesh = sharding.make_mesh(config.sharding, topology.devices)
    engine = generation.abstract_engine(config, TINY, mesh, work)
    projections = params.count(TINY) - 2 * TINY.sizes["V"] * TINY.sizes["D"]
    saved = plan["weight_bytes"] - generation.weight_bytes(engine)
    assert saved == pytest.approx(projections * (32 - bits) / 8 / 2, rel=0.15), "but for scales"
    assert all(engine.trace()), "they multiply"


def test_tensor_parallel_steps_add_up_activations(plan):
    reduced = [c for c in plan["decode"]["collectives"] if c["kind"] == "all-reduce"]
    (layers,) = [c for c in reduced if c["axes"] == "tensor" and c["group"] == 2]
    assert layers["count"] >= 2 * TINY.num_hidden_layers, "after attention and after the MLP"
    assert not any(c["between_slices"] for c in plan["decode"]["collectives"])


def test_time_and_cost_follow_from_both_programs(plan):
    prefill, step = (plan[name]["step_seconds"] for name in ("prefill", "decode"))
    assert prefill == max(plan["prefill"]["seconds"].values())
    assert step == max(plan["decode"]["seconds"].values())
    answers = 8 * 28 / (8 * prefill + 27 * step)
    assert plan["tokens_per_second"] == pytest.approx(answers), "the first token is prefill's"
    hours = (20 * prefill + 3 * 27 * step) / 3600
    assert plan["hours"] == pytest.approx(hours), "20 prompts are three rounds of 8 slots"
    assert plan["cost"] == pytest.approx(hours * 8 * 2.0)


def test_the_table_says_it_all(plan):
    text = table.generation_table(plan)
    for part in (
        "mesh                  data 4, tensor 2",
        "8 slots; prompts of 100 tokens, answers of 28",
        "fits                  yes",
        "parameters",
        "KV cache",
        "A DECODE STEP",
        "A PREFILL",
        "HBM traffic",
        "over tensor (2 devices)",
        "bound by",
        "time per token",
        "tokens/s",
        "20 prompts, ",
        "cost",
    ):
        assert part in text, part


def test_what_does_not_fit(topology):
    small = dataclasses.replace(topology, hbm_bytes=1000.0)
    found = generation.make_plan(on_mesh(-1, 1, 2), small, WORK)
    assert not found["fits"] and "cost" not in found
    assert "fits                  NO" in table.generation_table(found)


def test_more_slots_need_more_cache_and_no_more_weights(topology, plan):
    more = generation.make_plan(on_mesh(4, 1, 2), topology, dataclasses.replace(WORK, slots=16))
    assert more["weight_bytes"] == plan["weight_bytes"]
    assert more["cache_bytes"] == pytest.approx(2 * plan["cache_bytes"], rel=0.05)


def test_nothing_is_allocated(topology):
    before = {id(array) for array in jax.live_arrays()}
    config = of_variant("llama3.2-1b", **{"sharding.fsdp": 1, "sharding.tensor": 8})
    generation.make_plan(config, topology, WORK)
    assert not [a for a in jax.live_arrays() if id(a) not in before and a.nbytes > 10**6]


def test_it_must_be_possible():
    with pytest.raises(ValueError, match="are 528 together"):
        limits = dataclasses.replace(WORK, prompt_tokens=500)
        generation.make_plan(on_mesh(-1, 1, 1), topologies.describe("local"), limits)
    with pytest.raises(ValueError, match="6 slots cannot be split evenly over 8 groups of devices"):
        few = dataclasses.replace(WORK, slots=6)
        generation.make_plan(on_mesh(-1, 1, 1), topologies.describe("local"), few)


@pytest.mark.slow
def test_a_tpu_slice():
    pytest.importorskip("libtpu", reason="needs libtpu: the extra [tpu]")
    config = of_variant("llama-7b", **{"sharding.fsdp": 1, "sharding.tensor": 16})
    workload = generation.GenerationWorkload(1000, 256, 512, slots=16)
    found = generation.make_plan(config, topologies.describe("v5e-16"), workload)
    assert found["fits"] and found["decode"]["bound"] == "memory"
    cache = 2 * 32 * 16 * 768 * 32 * 128 * 2 / 16
    adjusting = 2 * 16 * 32000 * 4
    assert found["cache_bytes"] == pytest.approx(cache + adjusting, rel=0.01)
    assert found["weight_bytes"] == pytest.approx(2 * found["parameters"] / 16, rel=0.1)
    # Weights are read once, but for the embeddings: of one a step reads a few rows, the other stays
    # on the chip during a burst. Of the cache, what rows hold half-way: 512 of 768 positions.
    least = found["weight_bytes"] + cache * 512 / 768 - 2 * 2 * 32000 * 4096 / 16
    assert least < found["decode"]["hbm_traffic_bytes"] < 1.25 * least
    assert found["prefill"]["temporary_bytes"] < cache / 20, "no copy of the cache"
    assert BURST > 1, "what a burst does once is shared by its steps"
