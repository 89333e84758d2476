"""LoRA is peft's: the same curve, and folders that either reads; on every mesh, and resumed."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from alpacare_jax import generate, train
from alpacare_jax.checkpoints import adapters, checkpoint, export, model_folder
from alpacare_jax.inference.sampling import Sampling
from alpacare_jax.model import params
from alpacare_jax.model.dropout import Dropout, token_keys
from alpacare_jax.model.llama import Llama
from alpacare_jax.model.lora import LoraConfig
from alpacare_jax.model.params import FACTORS, Adapter
from alpacare_jax.model.projections import join
from alpacare_jax.model.quantised import Quantised
from alpacare_jax.training import optimizers
from alpacare_jax.training.train_step import TrainingProgram
from common import provenance
from tests.alpacare_jax.training.test_train_step import (
    GOLDEN_RATE,
    ONE_DEVICE,
    golden_config,
    golden_curve,
    golden_examples,
)
from tests.conftest import make_model, write_examples
from tests.support.hf_folders import params_to_hf
from tests.support.training import (
    TINY,
    assert_same_end,
    compile_once,
    hand_made_params,
    lines,
    one_line_error,
    resume,
    saved_state,
    small_machine,
    stopped_run,
    ten_steps,
)

pytestmark = pytest.mark.usefixtures("quickly_compiled")

ALL = ",".join(FACTORS)
LORA = LoraConfig(4, 8.0, rslora=False, dropout=0.0, targets=ALL, base="float32")
MIXED = {"data": 2, "fsdp": 2, "tensor": 2}


def hand_made_adapter(lora: LoraConfig = LORA) -> tuple[Adapter, dict]:
    """An adapter that changes every output: sines, as in `hand_made_params`."""
    adapter = lora.adapter(TINY)
    numbers = {w.path: i for i, w in enumerate(params.weight_specs(adapter))}

    def leaf(weight):
        shape = params.weight_shape(weight, adapter)
        wave = np.sin(np.linspace(0, 50 + numbers[weight.path], int(np.prod(shape))) ** 2)
        return jnp.asarray(0.1 * wave.reshape(shape), jnp.float32)

    return adapter, params.build_tree(adapter, leaf)


def logits(weights, adapter=None, scaling=1.0) -> np.ndarray:
    """Of the first golden example, by the model that training or the engine would run."""
    ids = golden_examples()[0].ids[None]
    model = Llama(weights, TINY, adapter=adapter, scaling=scaling)
    ones = jnp.ones(ids.shape, jnp.int32)
    return np.asarray(model.logits(model.hidden(ids, jnp.arange(ids.shape[1])[None], ones)))


# The mathematics.


def test_scaling_is_that_of_the_papers():
    """arXiv:2106.09685, section 4.1; arXiv:2312.03732, section 3.2; both as in peft."""
    assert LORA.scaling == 8 / 4
    assert dataclasses.replace(LORA, rslora=True).scaling == 8 / 4**0.5


def test_the_update_is_a_product_of_the_factors():
    """y = x (W + scaling A B) for each target, whatever its axes."""
    _, factors = hand_made_adapter()
    merged = dict(params.flatten(hand_made_params()))
    flat = params.flatten(factors)
    for path in [path for path in merged if path.endswith("_proj")]:
        a, b = (np.asarray(flat[path.replace("_proj", f"_lora_{part}")]) for part in "ab")
        layers = [np.tensordot(one_a, one_b, 1) for one_a, one_b in zip(a, b, strict=True)]
        merged[path] = merged[path] + LORA.scaling * np.stack(layers)
    want = logits(traverse_util.unflatten_dict(merged, sep="."))
    got = logits(hand_made_params(), factors, LORA.scaling)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(got - logits(hand_made_params())).max() > 0.1
    joined = join(hand_made_params(), factors, LORA.scaling)
    np.testing.assert_allclose(logits(joined), got, atol=1e-6)


def test_a_new_adapter_changes_nothing_and_is_peft_s():
    adapter = LORA.adapter(TINY)
    fresh = params.init(adapter, jax.random.key(0))
    np.testing.assert_array_equal(
        logits(hand_made_params(), fresh, LORA.scaling), logits(hand_made_params())
    )
    for path, array in params.flatten(fresh).items():
        if path.endswith("_lora_a"):
            columns = array[0].size / LORA.rank
            assert 0.8 * columns**-0.5 < float(jnp.abs(array).max()) <= columns**-0.5
            assert abs(float(array.mean())) < 0.1 * columns**-0.5


def test_dropout_depends_on_the_example_and_not_on_its_place():
    """The same tokens in another row, behind another example, are dropped alike."""
    ids, other = np.arange(5, 12), np.arange(40, 45)
    one = {
        "tokens": [*ids, *other],
        "positions": [*range(7), *range(5)],
        "segments": [1] * 7 + [2] * 5,
    }
    two = {
        "tokens": [*other, *ids],
        "positions": [*range(5), *range(7)],
        "segments": [1] * 5 + [2] * 7,
    }
    x = jnp.ones((12, 4096))
    kept = []
    for row, start in ((one, 0), (two, 5)):
        arrays = [jnp.asarray(row[name], jnp.int32)[None] for name in row]
        drop = Dropout(0.25, token_keys(*arrays, jnp.uint32(7)))
        kept.append(np.asarray(drop(x, 3))[start : start + 7])
        assert not np.array_equal(drop(x, 3), drop(x, 4))
        assert not np.array_equal(drop(x, 3), dataclasses.replace(drop, layer=1)(x, 3))
    np.testing.assert_array_equal(*kept)
    assert set(np.unique(kept[0])) == {0.0, np.float32(1 / 0.75)}
    share = (kept[0] == 0).mean(axis=1)  # 4,096 draws: standard deviation 0.007
    assert np.abs(share - 0.25).max() < 0.03
    assert np.abs(np.corrcoef(kept[0])[np.triu_indices(7, 1)]).max() < 0.08
    later = Dropout(0.25, token_keys(*arrays, jnp.uint32(8)))
    assert not np.array_equal(np.asarray(later(x, 3))[5:], kept[1])


# Training, on one device and on many.


def settings_of(lora: LoraConfig) -> dict:
    return {field.name: getattr(lora, field.name) for field in dataclasses.fields(lora)}


@pytest.fixture(scope="module")
def with_dropout() -> dict[str, list]:
    return golden_curve(6, lora=settings_of(dataclasses.replace(LORA, dropout=0.2)))


def test_curve_on_a_mesh_is_that_of_one_device(with_dropout):
    spread = golden_curve(6, lora=settings_of(dataclasses.replace(LORA, dropout=0.2)), **MIXED)
    np.testing.assert_allclose(spread["loss"], with_dropout["loss"], rtol=1e-5)
    np.testing.assert_allclose(spread["grad_norm"], with_dropout["grad_norm"], rtol=1e-4)
    assert params.flatten(spread["weights"]).keys() == {
        weight.path for weight in params.weight_specs(LORA.adapter(TINY))
    }


@pytest.mark.slow
@pytest.mark.parametrize("recipe, base", [({}, "nf4"), ({"offload": True}, "float32")])
def test_quantised_bases_and_offloaded_moments_are_the_same_on_a_mesh(recipe, base):
    lora = settings_of(dataclasses.replace(LORA, base=base))
    alone, spread = golden_curve(6, lora=lora), golden_curve(6, recipe, lora=lora, **MIXED)
    np.testing.assert_allclose(spread["loss"], alone["loss"], rtol=1e-5)
    np.testing.assert_allclose(spread["grad_norm"], alone["grad_norm"], rtol=1e-4)


SETTINGS = {
    "lora__rank": 4,
    "lora__alpha": 8.0,
    "lora__dropout": 0.1,
    "lora__targets": "q_proj,v_proj,down_proj",
    "optimizer__learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def workdir(corpus, tmp_path_factory) -> Path:
    """A whole run of 10 steps with LoRA."""
    workdir = tmp_path_factory.mktemp("lora")
    with small_machine() as patch:
        compile_once(patch)
        train.run(ten_steps(corpus, checkpoint__every_steps=4, **SETTINGS), workdir)
    return workdir


def test_a_resumed_run_ends_as_one_that_was_not_stopped(corpus, workdir, tmp_path):
    config = stopped_run(corpus, tmp_path, step=4, **SETTINGS)
    assert len(lines(tmp_path)) < len(lines(workdir))
    resume(config, tmp_path)
    assert_same_end(tmp_path, workdir, 10)
    losses = [line["eval_loss"] for line in lines(workdir) if "eval_loss" in line]
    assert losses[-1] < losses[0] - 0.01


def test_a_checkpoint_has_the_adapter_only(corpus, workdir):
    state = saved_state(workdir, 10)
    weights = {name for name in state if name.startswith("['params']")}
    assert len(weights) == 6
    assert all("_lora_" in name or "count" in name for name in state)
    with pytest.raises(ValueError, match=r"holds an adapter, not a model: .*--adapter="):
        checkpoint.load_params(workdir, TINY)


def test_a_run_resumes_with_the_same_adapter_only(corpus, workdir, capsys):
    changed = ten_steps(corpus, **SETTINGS | {"lora__rank": 8})
    assert "another run (lora.rank: 4 before, 8 now)" in one_line_error(changed, workdir, capsys)


def dequantised(weight):
    if not isinstance(weight, Quantised):
        return weight
    layers = [jax.tree.map(lambda x, i=i: x[i], weight) for i in range(len(weight.codes))]
    return jnp.stack([jax.jit(lambda one: one.astype(jnp.float32))(layer) for layer in layers])


@pytest.mark.slow
@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_a_quantised_base_is_trained_on_merged_and_answers(corpus, tmp_path, base):
    """The curve is that of training on the dequantised values; so is what is merged."""
    changes = {"lora__base": base, "train__epochs": 1, "train__samples": 2}
    config = ten_steps(corpus, **SETTINGS | changes)
    with small_machine() as patch:
        compile_once(patch)
        train.run(config, tmp_path / "run")
    model = tmp_path / "held"
    held = TrainingProgram(TINY, config, 5, ONE_DEVICE).load_base()
    floats = {path: dequantised(weight) for path, weight in params.flatten(held).items()}
    make_model(model, TINY, traverse_util.unflatten_dict(floats, sep="."))
    plain = ten_steps(corpus, **SETTINGS | {"train__epochs": 1, "model__checkpoint": str(model)})
    with small_machine() as patch:
        compile_once(patch)
        train.run(plain, tmp_path / "plain")
    ours, want = (
        [line["loss"] for line in lines(tmp_path / run) if "loss" in line]
        for run in ("run", "plain")
    )
    np.testing.assert_allclose(ours, want, rtol=1e-5)
    assert sum(isinstance(w, Quantised) for w in params.flatten(held).values()) == 7
    run = epath.Path(tmp_path / "run")
    export.merge(epath.Path(corpus / "base"), run, tmp_path / "merged", "best")
    answers = generated(corpus / "base", run, tmp_path, "unmerged.json")
    of_merged = generated(tmp_path / "merged", None, tmp_path, "merged.json")
    assert [a["output"] for a in of_merged] == [a["output"] for a in answers]


# Adapters on disk.


def generated(base: Path, adapter: Path | None, tmp_path: Path, name: str, **changes) -> list[dict]:
    records = write_examples(tmp_path / "records.jsonl", 3)
    arguments = {
        "checkpoint": epath.Path(base),
        "adapter": epath.Path(adapter) if adapter else None,
        "step": "best",
        "input": epath.Path(records),
        "output": epath.Path(tmp_path / name),
        "template": "alpaca",
        "max_length": None,
        "max_new_tokens": 8,
        "batch_size": 3,
        "devices": jax.devices()[:1],
        "tensor": 1,
        "sampling": Sampling(),
        "stop": [],
        "dtype": "float32",
        "generator": "",
    }
    generate.run(generate.GenerationConfig(**arguments | changes))
    return json.loads((tmp_path / name).read_text())


def test_answers_of_a_workdir_are_those_of_its_release(corpus, workdir, tmp_path):
    release = tmp_path / "release"
    export.to_peft(epath.Path(workdir), release, "best", "somebody/llama")
    ours = generated(corpus / "base", workdir, tmp_path, "ours.json")
    assert ours[0]["generator"] == workdir.name
    theirs = generated(corpus / "base", release, tmp_path, "theirs.json")
    assert [record["output"] for record in ours] == [record["output"] for record in theirs]
    plain = generated(corpus / "base", None, tmp_path, "plain.json")
    assert [record["output"] for record in ours] != [record["output"] for record in plain]
    record = provenance.read_record(tmp_path / "ours.json.run.json")
    assert record["config"]["adapter"]["weights"] == checkpoint.weights_digest(workdir, 10)
    assert not any("host" in json.loads(file.read_text()) for file in release.glob("*.json"))


def test_merged_is_unmerged(corpus, workdir, tmp_path):
    export.merge(epath.Path(corpus / "base"), epath.Path(workdir), tmp_path / "merged", "best")
    merged = checkpoint.load_params(tmp_path / "merged", TINY)
    base = checkpoint.load_params(corpus / "base", TINY)
    stored = adapters.open_adapter(workdir)
    factors = stored.load(TINY, jnp.float32)
    want = logits(base, factors, stored.lora.scaling)
    np.testing.assert_allclose(logits(merged), want, atol=1e-5)
    assert np.abs(want - logits(base)).max() > 0.01
    untouched = ("k_proj", "o_proj", "gate_proj", "up_proj", "embed_tokens", "norm", "lm_head")
    for path, array in params.flatten(merged).items():
        same = np.array_equal(array, params.flatten(base)[path])
        assert same == path.endswith(untouched)
    answers = generated(corpus / "base", workdir, tmp_path, "unmerged.json")
    of_merged = generated(tmp_path / "merged", None, tmp_path, "merged.json")
    assert [a["output"] for a in of_merged] == [a["output"] for a in answers]


def test_the_template_of_the_training_travels_with_an_adapter(corpus, workdir, tmp_path):
    run = epath.Path(shutil.copytree(workdir, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    record["config"]["data"]["template"] = "medalpaca"
    (run / "run.json").write_text(json.dumps(record))
    export.to_peft(run, tmp_path / "peft", "best", "")
    export.merge(epath.Path(corpus / "base"), tmp_path / "peft", tmp_path / "merged", "best")
    export.to_hf(tmp_path / "merged", tmp_path / "hf", "best", "")
    for folder in ("peft", "merged", "hf"):
        assert model_folder.trained_template(tmp_path / folder) == "medalpaca"
    assert "### Response" in (tmp_path / "hf" / "chat_template.jinja").read_text()


def test_training_goes_on_from_a_merged_adapter(corpus, workdir, tmp_path, capsys):
    """A second stage: the first adapter is merged, and a new one trained on what it made."""
    export.merge(epath.Path(corpus / "base"), epath.Path(workdir), tmp_path / "merged", "best")
    second = ten_steps(corpus, **SETTINGS | {"model__checkpoint": str(tmp_path / "merged")})
    resume(second, tmp_path / "second")
    before, after = lines(workdir), lines(tmp_path / "second")
    ends = [line["eval_loss"] for line in before if "eval_loss" in line]
    starts = [line["eval_loss"] for line in after if "eval_loss" in line]
    assert starts[0] == pytest.approx(min(ends), abs=1e-5), "as the first stage's best"
    assert starts[-1] < starts[0]
    answers = generated(tmp_path / "merged", tmp_path / "second", tmp_path, "second.json")
    plain = generated(tmp_path / "merged", None, tmp_path, "first.json")
    assert [a["output"] for a in answers] != [a["output"] for a in plain]
    for rank in (0, 4):
        wrong = ten_steps(
            corpus, **SETTINGS | {"model__checkpoint": str(workdir), "lora__rank": rank}
        )
        assert "convert merge" in one_line_error(wrong, tmp_path / f"wrong{rank}", capsys)


def test_an_adapter_of_another_base_is_refused(workdir, tmp_path, corpus):
    other = make_model(tmp_path / "other", TINY, hand_made_params())
    release = tmp_path / "release"
    export.to_peft(epath.Path(workdir), release, "best", "")
    for adapter in (workdir, release):
        with pytest.raises(ValueError, match=r"is an adapter of another model than .*other"):
            generated(other, adapter, tmp_path, "refused.json")
    with pytest.raises(FileNotFoundError, match="holds no adapter: it has neither"):
        generated(corpus / "base", other, tmp_path, "refused.json")


@pytest.mark.slow
def test_curve_and_folders_are_peft_s(torch, transformers, tmp_path):
    """20 steps from an adapter that we wrote and peft reads, to one that peft wrote and we read."""
    peft = pytest.importorskip("peft", reason="peft is what adapters are compared with")
    lora = dataclasses.replace(LORA, rslora=True)
    ours = golden_curve(20, lora=settings_of(lora))
    config, adapter = golden_config(), lora.adapter(TINY)
    start = params.init(adapter, jax.random.key(config.train.seed))
    (tmp_path / "start").mkdir()
    adapters.write_peft(tmp_path / "start", lora, adapter, start, "")
    base = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**TINY.to_hf(), attn_implementation="eager")
    )
    tensors = params_to_hf(jax.device_get(hand_made_params()), TINY)
    base.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in tensors})
    model = peft.PeftModel.from_pretrained(base, tmp_path / "start", is_trainable=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == params.count(adapter)
    recipe, examples = config.optimizer, golden_examples()
    adamw = torch.optim.AdamW(
        trained, GOLDEN_RATE, (recipe.beta1, recipe.beta2), recipe.epsilon, recipe.weight_decay
    )
    warmup = optimizers.warmup_steps(recipe, 20)
    schedule = transformers.get_cosine_schedule_with_warmup(adamw, warmup, 20)
    losses, norms = [], []
    for i in range(20):
        first = 8 * i % len(examples)
        batch = examples[first : first + 8]
        count, total = sum(e.num_targets for e in batch), 0.0
        for e in batch:
            ids = torch.from_numpy(e.ids).long()[None]
            answer, targets = (
                ids[0, e.prompt_length :],
                model(ids).logits[0, e.prompt_length - 1 : -1],
            )
            loss = torch.nn.functional.cross_entropy(targets, answer, reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)))
        losses.append(total)
        adamw.step()
        schedule.step()
        adamw.zero_grad()
    np.testing.assert_allclose(ours["loss"], losses, atol=1e-4)
    np.testing.assert_allclose(ours["grad_norm"], norms, rtol=1e-3)
    assert losses[-1] < losses[0] - 0.1
    model.save_pretrained(tmp_path / "theirs")
    stored = adapters.open_adapter(tmp_path / "theirs")
    assert dataclasses.replace(stored.lora, base="float32") == lora
    theirs = stored.load(TINY, jnp.float32)
    for path, array in params.flatten(ours["weights"]).items():
        np.testing.assert_allclose(array, params.flatten(theirs)[path], atol=2e-4, err_msg=path)
    with torch.no_grad():
        want = model(torch.from_numpy(examples[0].ids).long()[None]).logits.numpy()
    got = logits(hand_made_params(), theirs, stored.lora.scaling)
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.fixture
def release(tmp_path) -> Path:
    """An adapter as peft saves it."""
    folder = tmp_path / "release"
    folder.mkdir()
    adapters.write_peft(folder, LORA, *hand_made_adapter(), "somebody/llama")
    return folder


def test_a_folder_of_peft_s_is_read_back(release):
    stored = adapters.open_adapter(release)
    assert dataclasses.replace(stored.lora, base="float32") == LORA
    for path, array in params.flatten(stored.load(TINY, jnp.float32)).items():
        np.testing.assert_array_equal(array, params.flatten(hand_made_adapter()[1])[path])


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'; only 'LORA'"),
        ({"use_dora": True}, "use_dora=True, which is not implemented"),
        ({"bias": "all"}, "bias='all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"r": 8}, "has shape .* rank 8 of this model requires"),
        ({"r": None}, "is damaged or empty"),
        ({"r": 65}, "rank 65 is over 64, the most that q_proj"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_of_peft_s_that_would_change_answers_are_refused(release, changes, text):
    path = release / adapters.PEFT_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=text):
        adapters.open_adapter(release).load(TINY, jnp.float32)


def test_weights_of_old_versions_of_peft_are_read(torch, release):
    weights = load_file(release / adapters.PEFT_WEIGHTS)
    tensors = {key: torch.from_numpy(array).half() for key, array in weights.items()}
    torch.save(tensors, release / "adapter_model.bin")
    (release / adapters.PEFT_WEIGHTS).unlink()
    found = adapters.open_adapter(release).load(TINY, jnp.float32)
    for path, array in params.flatten(found).items():
        np.testing.assert_allclose(array, params.flatten(hand_made_adapter()[1])[path], atol=1e-4)


@pytest.mark.parametrize("fault", ["missing", "extra", "nan", "other", "none"])
def test_weights_of_peft_s_that_do_not_fit_are_refused(release, fault):
    path = release / adapters.PEFT_WEIGHTS
    tensors = load_file(path)
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    text = key.replace(".", r"\.")
    if fault == "missing":
        del tensors[key]
    elif fault == "extra":
        tensors["base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight"] = tensors[key]
        text = "layers.2.self_attn.q_proj.lora_B.weight, which this model has not"
    elif fault == "nan":
        tensors[key][0, 0] = np.nan
        text = "self_attn.q_lora_b holds NaN"
    elif fault == "other":
        tensors[key.replace("q_proj", "qkv_proj").replace("_B", "_A")] = tensors[key]
        text = "adapts qkv_proj; only q_proj, k_proj"
    save_file(tensors, path)
    if fault == "none":
        path.unlink()
        text = "lacks adapter_model.safetensors; download it again"
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        adapters.open_adapter(release).load(TINY, jnp.float32)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"targets": "q_proj,w_proj"}, "no projection 'w_proj'; did you mean"),
        ({"targets": " , "}, "lora.targets is empty; choose from q_proj, k_proj"),
        ({"rank": -1}, "lora.rank is -1; it must be at least 1"),
        ({"alpha": 0.0}, "lora.alpha is 0.0"),
        ({"dropout": 1.0}, "lora.dropout is 1.0"),
        ({"base": "int3"}, "lora.base is 'int3'; choose from"),
    ],
)
def test_settings_are_checked(changes, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(LORA, **changes)
