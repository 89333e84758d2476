"""The mathematics of a step: packing, accumulation, any mesh, and a golden loss curve."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpacare_jax.data.batches import Batcher
from alpacare_jax.data.encoding import EncodedExample
from alpacare_jax.distributed import sharding
from alpacare_jax.model import attention, params
from alpacare_jax.training import batching, optimizers
from alpacare_jax.training.config import RunConfig
from alpacare_jax.training.train_step import TrainingProgram, accumulate
from tests.alpacare_jax.training.test_optimizers import RECIPE
from tests.conftest import REPOSITORY
from tests.support.training import TINY, hand_made_params, run_config

pytestmark = pytest.mark.usefixtures("quickly_compiled")

GOLDEN = REPOSITORY / "tests/golden"

EXAMPLES = [
    EncodedExample((7 * i + 3 * np.arange(length) ** 2) % 500 + 3, 2 + i)
    for i, length in enumerate([70, 40, 15, 60, 50, 12, 90, 25, 33, 20])
]
"""They pack into 4 rows of 128 with 2 or 3 in each."""
# One is a conversation: the loss is on two answers of several.
EXAMPLES[3] = dataclasses.replace(EXAMPLES[3], loss=np.isin(np.arange(60) // 7, [1, 2, 6]))


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


ONE_DEVICE = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
PROGRAM = TrainingProgram(TINY, run_config(Path()), 10, ONE_DEVICE)


@functools.cache
def gradient_of_micro():
    def loss(weights, micro):
        return PROGRAM.mean_loss(weights, micro)[0]

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
    weights = hand_made_params()
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


@pytest.mark.slow
def test_accumulation_of_four_is_accumulation_of_one():
    weights = hand_made_params()
    four = batcher(EXAMPLES, 10, microbatch_tokens=128).batch(0)
    assert four.num_micro == 4
    arrays = {name: array[:4] for name, array in four.arrays.items()}
    assert arrays["tokens"].shape == (4, 1, 128)

    @jax.jit
    def gradient(weights, arrays, num_micro):
        def add(micro, total):
            def loss(weights):
                return PROGRAM.mean_loss(weights, micro)[0]

            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(weights))

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, weights))
        loss, grads = accumulate(add, arrays, num_micro, zero)
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


GOLDEN_RATE = 2e-3


def golden_examples() -> list[EncodedExample]:
    """tests/golden/tiny_tokens.json: 80 rows, prompt_length first, then the ids."""
    rows = json.loads((GOLDEN / "tiny_tokens.json").read_text())
    return [EncodedExample(np.asarray(ids, np.int32), length) for length, *ids in rows]


def golden_config() -> RunConfig:
    changes = {"learning_rate": GOLDEN_RATE, "warmup_ratio": 0.1, "weight_decay": 0.01}
    return dataclasses.replace(run_config(Path()), optimizer=dataclasses.replace(RECIPE, **changes))


def golden_curve(
    steps: int = 10,
    recipe: dict | None = None,
    rules: dict | None = None,
    lora: dict | None = None,
    remat: str = "full",
    **mesh_sizes,
) -> dict[str, list]:
    """Steps of 8 examples each from hand-made weights; no random number anywhere.

    `recipe`, `rules`, `lora`: what is changed in the settings of the optimizer, of sharding and of
    LoRA, whose adapter alone is random, and in the result under `weights`.
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
    lora = dataclasses.replace(config.lora, **lora or {})
    model = dataclasses.replace(config.model, remat=remat)
    config = dataclasses.replace(config, model=model, optimizer=recipe, sharding=spread, lora=lora)
    program = TrainingProgram(TINY, config, steps, mesh)
    step_once, _ = program.make_steps()
    weights, base = hand_made_params(), {}
    if lora.rank:
        held = params.flatten(weights)
        base = params.build_tree(TINY, lambda w: program.base.make(w, held[w.path]))
        weights = params.init(program.trained, jax.random.key(config.train.seed))
    state = jax.device_put(
        {"params": weights, "opt_state": program.optimizer.init(weights)},
        program.state_shardings,
    )
    result = {"loss": [], "grad_norm": []}
    for i in range(steps):
        groups, start = sharding.batch_groups(mesh), 8 * i % len(examples)
        one = batcher(examples[start : start + 8], 8, row_groups=groups, microbatch_tokens=128)
        batch = one.batch(0)
        arrays, stops = sharding.put_batch(batch.arrays, mesh), sharding.put_flag(False, mesh)
        state, report = step_once(state, arrays, np.int32(batch.num_micro), stops, base)
        for name, values in result.items():
            values.append(float(report[name]))
    return result | ({"weights": state["params"]} if lora.rank else {})


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
    "mesh_sizes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
        pytest.param(  # tiny has fewer heads
            {"tensor": 8, "rules": {"heads": "", "kv_heads": ""}}, marks=pytest.mark.slow
        ),
        {"data": 2, "fsdp": 2, "tensor": 2},
    ],
    ids=str,
)
def test_loss_curve_is_the_same_on_any_mesh(twenty_steps_of_one_device, mesh_sizes):
    curve = golden_curve(20, **mesh_sizes)
    for name, values in curve.items():
        assert len(values) == 20
        np.testing.assert_allclose(
            values, twenty_steps_of_one_device[name], rtol=1e-5, err_msg=name
        )


MIXED = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "context", "dots"])
def test_loss_curve_is_the_same_under_every_remat_policy(twenty_steps_of_one_device, remat):
    """On a mesh, where what is kept of each layer is sharded, and several micro-batches a step."""
    curve = golden_curve(20, remat=remat, **MIXED)
    for name, values in curve.items():
        expected = twenty_steps_of_one_device[name]
        np.testing.assert_allclose(values, expected, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_loss_curve_of_adafactor_is_the_same_on_any_mesh(twenty_steps_of_one_device):
    alone = golden_curve(10, {"name": "adafactor"})
    spread = golden_curve(10, {"name": "adafactor"}, **MIXED)
    np.testing.assert_allclose(spread["loss"], alone["loss"], rtol=1e-5)
    assert alone["loss"][-1] < alone["loss"][0] - 0.3
    assert abs(alone["loss"][-1] - twenty_steps_of_one_device["loss"][9]) > 1e-3


@pytest.mark.slow
def test_loss_curve_with_moments_in_the_host_is_the_same(twenty_steps_of_one_device):
    curve = golden_curve(20, {"offload": True}, **MIXED)
    np.testing.assert_allclose(curve["loss"], twenty_steps_of_one_device["loss"], rtol=1e-5)


@pytest.mark.slow
def test_golden_loss_curve_is_that_of_torch():
    """transformers' model, torch's AdamW, one unpadded example at a time."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.support.hf_folders import params_to_hf

    golden = json.loads((GOLDEN / "tiny_loss.json").read_text())
    config = golden_config().optimizer
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**TINY.to_hf(), attn_implementation="eager")
    )
    tensors = params_to_hf(jax.device_get(hand_made_params()), TINY)
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


def write_golden() -> None:
    """Remakes the golden files: python -m tests.alpacare_jax.training.test_train_step."""
    rows = []
    for i in range(80):
        length, prompt = 9 + (17 * i) % 53, 2 + i % 6
        rows.append([prompt, 1, *((i % 8 + j * j) % 40 + 3 for j in range(length)), 2])
    text = ",\n".join(json.dumps(row) for row in rows)
    (GOLDEN / "tiny_tokens.json").write_text(f"[\n{text}\n]\n")
    (GOLDEN / "tiny_loss.json").write_text(json.dumps(golden_curve(), indent=1) + "\n")


if __name__ == "__main__":
    write_golden()


# The check of the attention kernel; `tests/alpacare_jax/model/test_kernel_check.py` has the faults.


@pytest.fixture
def kernel_is(monkeypatch):
    """The run's kernel is called cudnn, and is what the test says."""

    def replace(kernel):
        monkeypatch.setattr(batching, "choose_kernel", lambda *_: ("cudnn", ""))
        monkeypatch.setattr(attention, "make_kernel", lambda *_: kernel)

    return replace


def test_the_kernel_is_checked_with_the_models_own_queries_and_keys(kernel_is):
    weights, batch = params.init(TINY, jax.random.key(0)), batcher(EXAMPLES, 10).batch(0)
    kernel_is(attention.xla)
    assert "kernel cudnn checked on the first batch" in PROGRAM.check_kernel(weights, batch, {})

    def joins_examples(segments, positions):
        index = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
        return attention.xla(jnp.ones_like(segments), index)

    kernel_is(joins_examples)
    with pytest.raises(FloatingPointError, match=r"nothing was trained.*attention=cudnn_mask"):
        PROGRAM.check_kernel(weights, batch, {})


def test_the_definition_is_not_compared_with_itself():
    weights, batch = params.init(TINY, jax.random.key(0)), batcher(EXAMPLES, 10).batch(0)
    assert PROGRAM.check_kernel(weights, batch, {}) == ""
