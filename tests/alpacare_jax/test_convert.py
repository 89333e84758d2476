"""Conversion keeps every bit, and a damaged or foreign source leaves no target behind."""

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from alpacare_jax import convert
from alpacare_jax.checkpoints import (
    checkpoint,
    gguf_file,
    layerwise,
    model_folder,
    safetensors_file,
)
from alpacare_jax.model.config import LlamaConfig
from alpacare_jax.model.llama import Llama
from tests.conftest import REPOSITORY, write_tiny_tokenizer

CONFIG = LlamaConfig(
    vocab_size=384,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    attention_bias=True,
    mlp_bias=True,
)
PLAIN = dataclasses.replace(CONFIG, attention_bias=False, mlp_bias=False)
TIED = dataclasses.replace(PLAIN, tie_word_embeddings=True)
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CARRIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def hf_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a LLaMA folder, written out by hand."""
    V, D, F = config.vocab_size, config.hidden_size, config.intermediate_size
    NH, KH = config.num_attention_heads * 16, config.num_key_value_heads * 16
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (V, D)
    for i in range(config.num_hidden_layers):
        for name, shape in {
            "self_attn.q_proj": (NH, D),
            "self_attn.k_proj": (KH, D),
            "self_attn.v_proj": (KH, D),
            "self_attn.o_proj": (D, NH),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
        }.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
            if config.mlp_bias if "mlp" in name else config.attention_bias:
                shapes[f"model.layers.{i}.{name}.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{name}.weight"] = (D,)
    return shapes


def hf_tensors(config: LlamaConfig, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {}
    for key, shape in hf_shapes(config).items():
        values = 0.15 * rng.standard_normal(shape) + ("norm" in key)
        tensors[key] = values.astype(DTYPES[dtype])
    return tensors


def write_hf(
    directory: Path,
    config: LlamaConfig,
    tensors: dict[str, np.ndarray] | None = None,
    dtype: str = "float32",
    **config_json,
) -> Path:
    """A Hugging Face folder with one safetensors file and the tiny tokenizer."""
    directory.mkdir()
    content = config.to_hf() | {"torch_dtype": dtype, "pad_token_id": 0} | config_json
    # Not our own way of writing JSON, so that "carried over" can be told from "written again".
    (directory / "config.json").write_text(json.dumps(content, indent=4))
    (directory / "generation_config.json").write_text('{"eos_token_id":2, "do_sample":false}')
    write_tiny_tokenizer(directory)
    tensors = hf_tensors(config, dtype) if tensors is None else tensors
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder's safetensors files, by safetensors alone."""
    result = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            assert not tensors.keys() & result.keys()
            result |= tensors
    return result


def assert_same_bits(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype, key
        assert actual[key].shape == tensor.shape, key
        assert actual[key].tobytes() == tensor.tobytes(), key


def to_hf(source: Path, target: Path, dtype: str = "") -> Path:
    convert.to_hf(source, target, "best", dtype)
    return target


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@contextlib.contextmanager
def fails_and_leaves_nothing(directory: Path, error: type[Exception], *named: str):
    """The block raises `error` with a one-line message, and adds nothing to `directory`."""
    before = {p: p.is_file() and p.read_bytes() for p in directory.rglob("*")}
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert all(name in message for name in named), message
    assert "\n" not in message
    assert {p: p.is_file() and p.read_bytes() for p in directory.rglob("*")} == before


@pytest.fixture
def source(tmp_path) -> Path:
    return write_hf(tmp_path / "hf", CONFIG)


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="transformers' models need it")


@pytest.fixture(scope="session")
def transformers(torch):
    return pytest.importorskip("transformers", reason="it is what must open our folders")


# There and back


@pytest.mark.parametrize("shard_bytes", [None, 40_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_keeps_every_bit(dtype, shard_bytes, tmp_path, monkeypatch):
    tensors = hf_tensors(CONFIG, dtype)
    strange = np.array([-0.0, np.inf, -np.inf, np.nan, 6e-8, 1e-40], DTYPES[dtype])
    for tensor in tensors.values():
        tensor.ravel()[: len(strange)] = strange
    source = write_hf(tmp_path / "hf", CONFIG, tensors, dtype)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "README.md").write_text("not a model file")
    convert.from_hf(source, tmp_path / "ours")
    if shard_bytes:
        monkeypatch.setattr(convert, "MAX_SHARD_BYTES", shard_bytes)
    result = to_hf(tmp_path / "ours", tmp_path / "back")

    assert_same_bits(read_tensors(result), tensors)
    for name in (*CARRIED, "chat_template.jinja"):
        assert (result / name).read_bytes() == (source / name).read_bytes(), name
        assert (tmp_path / "ours" / name).read_bytes() == (source / name).read_bytes(), name
    files = {path.name for path in result.iterdir()} - {*CARRIED, "chat_template.jinja", "run.json"}
    if not shard_bytes:
        assert files == {"model.safetensors"}
        return
    count = len(files) - 1
    assert count > 3
    names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    assert files == {*names, "model.safetensors.index.json"}
    index = json.loads((result / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    for name in names:
        held = [key for key, file in index["weight_map"].items() if file == name]
        with safetensors.safe_open(result / name, framework="numpy") as file:
            assert sorted(file.keys()) == sorted(held)
            assert file.metadata() == {"format": "pt"}
        # A tensor larger than a shard has one for itself.
        assert len(held) == 1 or sum(tensors[key].nbytes for key in held) <= shard_bytes
    convert.from_hf(result, tmp_path / "again")
    monkeypatch.undo()
    assert_same_bits(read_tensors(to_hf(tmp_path / "again", tmp_path / "whole")), tensors)


def test_run_json_tells_where_it_came_from(source, tmp_path):
    convert.from_hf(source, tmp_path / "ours")
    record = json.loads((tmp_path / "ours" / "run.json").read_text())
    assert record["command"] == "convert from_hf"
    assert record["source"] == str(source)
    assert record["end"] >= record["start"]


@pytest.mark.parametrize("shard_bytes", [None, "100KB"])
@pytest.mark.parametrize(("config", "dtype"), [(CONFIG, "float32"), (TIED, "bfloat16")])
def test_transformers_opens_the_result(
    config, dtype, shard_bytes, tmp_path, monkeypatch, torch, transformers
):
    """A folder saved by transformers itself, in its own style of config.json."""
    written = write_hf(tmp_path / "hand", config, dtype=dtype)
    Auto = transformers.AutoModelForCausalLM
    model = Auto.from_pretrained(written, dtype=getattr(torch, dtype))
    source = tmp_path / "hf"
    model.save_pretrained(source, max_shard_size=shard_bytes or "1GB")
    transformers.AutoTokenizer.from_pretrained(written).save_pretrained(source)
    assert (source / "model.safetensors.index.json").exists() == bool(shard_bytes)
    if shard_bytes:
        monkeypatch.setattr(convert, "MAX_SHARD_BYTES", 100_000)
    convert.from_hf(source, tmp_path / "ours")
    result = to_hf(tmp_path / "ours", tmp_path / "back")

    for name in CARRIED:
        assert (result / name).read_bytes() == (source / name).read_bytes(), name
    reopened, loading = Auto.from_pretrained(result, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert reopened.dtype == getattr(torch, dtype)
    text = "why does fever come with pain in the heart?"
    ids = transformers.AutoTokenizer.from_pretrained(source)(text)["input_ids"]
    assert transformers.AutoTokenizer.from_pretrained(result)(text)["input_ids"] == ids
    assert len(ids) > 5
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits
        assert torch.equal(reopened(torch.tensor([ids])).logits, expected)
        exact = reopened.float()(torch.tensor([ids])).logits.numpy()
    weights = checkpoint.load_params(tmp_path / "ours", config, dtype=jnp.float32)
    llama = Llama(weights, model_folder.read_config(tmp_path / "ours"))
    positions = np.arange(len(ids))[None]
    hidden = llama.hidden(np.array([ids]), positions, np.ones_like(positions))
    assert np.abs(np.asarray(llama.logits(hidden)) - exact).max() <= 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_to_hf_casts_and_says_so(dtype, source, tmp_path, torch, transformers):
    convert.from_hf(source, tmp_path / "ours")
    result = to_hf(tmp_path / "ours", tmp_path / "half", dtype)
    expected = {key: t.astype(DTYPES[dtype]) for key, t in read_tensors(source).items()}
    assert_same_bits(read_tensors(result), expected)
    before = json.loads((source / "config.json").read_text())
    assert json.loads((result / "config.json").read_text()) == before | {"torch_dtype": dtype}
    model = transformers.AutoModelForCausalLM.from_pretrained(result)
    assert model.dtype == getattr(torch, dtype)
    for key, tensor in model.state_dict().items():
        assert np.array_equal(tensor.float().numpy(), expected[key].astype(np.float32)), key


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", None])
def test_config_json_names_the_stored_dtype(key, tmp_path):
    """A folder whose config.json says float16 of float32 weights would lose half their bits."""
    source = write_hf(tmp_path / "hf", PLAIN)
    content = json.loads((source / "config.json").read_text())
    del content["torch_dtype"]
    (source / "config.json").write_text(json.dumps(content | ({key: "float16"} if key else {})))
    convert.from_hf(source, tmp_path / "ours")
    result = to_hf(tmp_path / "ours", tmp_path / "back")
    assert json.loads((result / "config.json").read_text()) == content | {key or "dtype": "float32"}


def test_tied_model_may_repeat_its_embedding(tmp_path):
    tensors = hf_tensors(TIED)
    twice = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    source = write_hf(tmp_path / "hf", TIED, twice)
    convert.from_hf(source, tmp_path / "ours")
    assert_same_bits(read_tensors(to_hf(tmp_path / "ours", tmp_path / "back")), tensors)


def test_old_rotary_buffers_are_ignored(tmp_path):
    tensors = hf_tensors(PLAIN)
    for layer in range(3):
        key = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        tensors[key] = np.ones(8, np.float32)
    source = write_hf(tmp_path / "hf", PLAIN, tensors)
    convert.from_hf(source, tmp_path / "ours")
    back = read_tensors(to_hf(tmp_path / "ours", tmp_path / "back"))
    assert_same_bits(back, {k: t for k, t in tensors.items() if "inv_freq" not in k})


# Sources that do not fit


def without(key: str):
    return lambda tensors: tensors.pop(key)


def put(key: str, array: np.ndarray):
    return lambda tensors: tensors.update({key: array})


Q1 = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("model.layers.3.mlp.up_proj.weight", np.ones((96, 64), "f")), ["left-over", "s.3.m"]),
        (put("lm_head.bias", np.ones(384, "f")), ["left-over key lm_head.bias"]),
        (without(f"{Q1}.weight"), [f"missing keys, the first is {Q1}.weight", "1 "]),
        (without(f"{Q1}.bias"), [f"{Q1}.bias"]),
        (without("lm_head.weight"), ["missing", "lm_head.weight"]),
        (put(f"{Q1}.weight", np.ones((32, 64), "f")), [f"{Q1}.weight", "(32, 64)", "(64, 64)"]),
        # As many numbers, another shape: a transposed matrix must not be reshaped into place.
        (
            put("model.layers.0.mlp.up_proj.weight", np.ones((64, 96), "f")),
            ["up_proj.weight", "(64, 96)", "(96, 64)"],
        ),
        (put(f"{Q1}.weight", np.ones((64, 64), np.float16)), [f"{Q1}.weight is float16", "32"]),
    ],
)
def test_keys_that_do_not_fit_are_named(change, named, tmp_path):
    tensors = hf_tensors(CONFIG)
    change(tensors)
    source = write_hf(tmp_path / "hf", CONFIG, tensors)
    with fails_and_leaves_nothing(tmp_path, ValueError, *named):
        convert.from_hf(source, tmp_path / "ours")


def test_key_in_two_shards_is_named(tmp_path):
    """Which of the two would win is a matter of file names."""
    source = write_hf(tmp_path / "hf", PLAIN)
    tensors = read_tensors(source)
    (source / "model.safetensors").unlink()
    save_file(tensors, source / "a.safetensors")
    save_file({f"{Q1}.weight": np.ones((64, 64), np.float32)}, source / "b.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "a.safetensors") | {"x": "b.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with fails_and_leaves_nothing(tmp_path, ValueError, f"{Q1}.weight", "twice"):
        convert.from_hf(source, tmp_path / "ours")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vocab_size": 400}, ["weight has shape (384, 64)", "(400, 64)"]),
        ({"num_hidden_layers": 2}, ["left-over key model.layers.2."]),
        ({"num_hidden_layers": 4}, ["missing keys", "model.layers.3."]),
        ({"hidden_size": 128, "head_dim": 16}, ["has shape", ", 128)"]),
        ({"num_key_value_heads": 4}, ["k_proj.bias has shape (32,)", "(64,)"]),
        ({"tie_word_embeddings": True}, ["lm_head.weight differs", "tie_word_embeddings to false"]),
        ({"attention_bias": False}, ["left-over key", "_proj.bias"]),
        ({"model_type": "mistral"}, ["mistral"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ["yarn"]),
        # The tokenizer has ids 0 to 357 and EOS 2.
        ({"eos_token_id": 7}, ["eos_token_id 2", "says 7", "tokenizer files"]),
        ({"bos_token_id": 7}, ["bos_token_id 1", "says 7"]),
    ],
)
def test_config_of_another_model_is_named(change, named, source, tmp_path):
    change_json(source / "config.json", **change)
    with fails_and_leaves_nothing(tmp_path, ValueError, *named):
        convert.from_hf(source, tmp_path / "ours")


def test_tokenizer_of_another_model_is_named(tmp_path):
    small = dataclasses.replace(PLAIN, vocab_size=300)
    source = write_hf(tmp_path / "hf", small)
    with fails_and_leaves_nothing(tmp_path, ValueError, "tokenizer has", "300 embedding rows"):
        convert.from_hf(source, tmp_path / "ours")


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("config.json", ["config.json", "give a Hugging Face folder to convert"]),
        ("tokenizer.json", ["tokenizer.json"]),
        ("model.safetensors", ["model.safetensors", "model.safetensors.index.json"]),
    ],
)
def test_absent_files_are_named(name, named, source, tmp_path):
    (source / name).unlink()
    with fails_and_leaves_nothing(tmp_path, FileNotFoundError, *named):
        convert.from_hf(source, tmp_path / "ours")


def test_absent_shard_is_named(source, tmp_path, monkeypatch):
    convert.from_hf(source, tmp_path / "ours")
    monkeypatch.setattr(convert, "MAX_SHARD_BYTES", 40_000)
    sharded = to_hf(tmp_path / "ours", tmp_path / "sharded")
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    with fails_and_leaves_nothing(tmp_path, FileNotFoundError, lost.name, "index.json"):
        convert.from_hf(sharded, tmp_path / "again")


@pytest.mark.parametrize("kept", [0, 5, 500, 0.5, -1])
def test_truncated_file_is_one_clear_error(kept, source, tmp_path):
    path = source / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with fails_and_leaves_nothing(tmp_path, ValueError, str(path), "truncated", "download"):
        convert.from_hf(source, tmp_path / "ours")


def test_other_models_checkpoint_is_named(source, tmp_path):
    convert.from_hf(source, tmp_path / "ours")
    for change, named in [
        ({"intermediate_size": 128}, ["layers.mlp.", "(3, ", "128", "another model"]),
        ({"num_hidden_layers": 2}, ["layers.", "(3, ", "(2, ", "another model"]),
        ({"mlp_bias": False}, ["has an extra weight layers.mlp.", "_bias"]),
        ({"tie_word_embeddings": True}, ["has an extra weight lm_head"]),
    ]:
        shutil.copytree(tmp_path / "ours", tmp_path / "swapped")
        change_json(tmp_path / "swapped" / "config.json", **change)
        with fails_and_leaves_nothing(tmp_path, ValueError, *named):
            to_hf(tmp_path / "swapped", tmp_path / "back")
        shutil.rmtree(tmp_path / "swapped")


def test_weights_that_a_checkpoint_lacks_are_named(tmp_path):
    source = write_hf(tmp_path / "hf", PLAIN)
    convert.from_hf(source, tmp_path / "ours")
    change_json(tmp_path / "ours" / "config.json", mlp_bias=True)
    with fails_and_leaves_nothing(tmp_path, ValueError, "lacks weight layers.mlp.", "_bias"):
        to_hf(tmp_path / "ours", tmp_path / "back")


def test_to_hf_names_the_saved_steps(source, tmp_path):
    convert.from_hf(source, tmp_path / "ours")
    with fails_and_leaves_nothing(tmp_path, ValueError, "'7'", "[0]", "latest"):
        convert.to_hf(tmp_path / "ours", tmp_path / "back", "7", "")


def test_to_hf_of_a_folder_without_checkpoint(source, tmp_path):
    with fails_and_leaves_nothing(tmp_path, FileNotFoundError, "no finished checkpoint"):
        to_hf(source, tmp_path / "back")


# The target


def test_target_that_exists_is_left_alone(source, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("folder", "file"):
        with fails_and_leaves_nothing(tmp_path, FileExistsError, name, "--target"):
            convert.from_hf(source, tmp_path / name)
    convert.from_hf(source, tmp_path / "ours")
    for name in ("folder", "file", "hf"):
        with fails_and_leaves_nothing(tmp_path, FileExistsError, name, "--target"):
            to_hf(tmp_path / "ours", tmp_path / name)


def test_empty_target_and_missing_parents_are_fine(source, tmp_path):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b" / "ours"):
        convert.from_hf(source, target)
        assert (target / "config.json").is_file()
        assert os.stat(target).st_mode & 0o777 == 0o755
        assert [p.name for p in target.parent.iterdir() if "partial" in p.name] == []


def test_full_disk_is_told_before_anything_is_written(source, tmp_path, monkeypatch):
    convert.from_hf(source, tmp_path / "ours")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    for owner in (layerwise.Writer, safetensors_file.FolderWriter):
        monkeypatch.delattr(owner, "__init__")
    with fails_and_leaves_nothing(tmp_path, OSError, "0.0 GB free", "--target"):
        convert.from_hf(source, tmp_path / "never")
    with fails_and_leaves_nothing(tmp_path, OSError, "0.0 GB free", "--target"):
        to_hf(tmp_path / "ours", tmp_path / "never")


def fail_at(monkeypatch, owner: type, count: int, error: type[BaseException]) -> None:
    """The count-th call of owner.write raises `error` instead."""
    write, calls = owner.write, iter(range(1, 1000))

    def write_or_fail(*args):
        if next(calls) == count:
            raise error("disk went away")
        write(*args)

    monkeypatch.setattr(owner, "write", write_or_fail)


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failure_half_way_leaves_nothing(error, count, source, tmp_path, monkeypatch):
    convert.from_hf(source, tmp_path / "ours")
    fail_at(monkeypatch, layerwise.Writer, count, error)
    fail_at(monkeypatch, safetensors_file.FileWriter, count, error)
    with fails_and_leaves_nothing(tmp_path, error, "disk went away"):
        convert.from_hf(source, tmp_path / "never")
    with fails_and_leaves_nothing(tmp_path, error, "disk went away"):
        to_hf(tmp_path / "ours", tmp_path / "never")


def test_disk_that_fills_up_half_way(source, tmp_path):
    """Somebody else may take the space that was there when it was checked."""
    convert.from_hf(source, tmp_path / "ours")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with fails_and_leaves_nothing(tmp_path, OSError, "weights"):
            convert.from_hf(source, tmp_path / "never")
        with fails_and_leaves_nothing(tmp_path, OSError, "File too large"):
            to_hf(tmp_path / "ours", tmp_path / "never")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from alpacare_jax import convert
from alpacare_jax.checkpoints import layerwise, safetensors_file

source, ours, folder = map(Path, sys.argv[1:])
owners = {"Writer": layerwise.Writer, "FileWriter": safetensors_file.FileWriter,
          "FolderWriter": safetensors_file.FolderWriter, "os": os, "shutil": shutil}
for point in sys.stdin.read().split():
    direction, owner, name, count = point.split("-")
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, (point, status)
        continue
    function, calls = getattr(owners[owner], name), iter(range(1, 1000))
    def call_or_die(*args, **kwargs):
        if next(calls) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    setattr(owners[owner], name, call_or_die)
    if direction == "from_hf":
        convert.from_hf(source, folder / point)
    else:
        convert.to_hf(ours, folder / point, "best", "")
    os._exit(0)
"""

KILL_POINTS = """
from_hf-Writer-write-1 from_hf-Writer-write-15 from_hf-Writer-__exit__-1 from_hf-os-replace-1
from_hf-os-replace-2 from_hf-os-replace-3
to_hf-FileWriter-write-1 to_hf-FileWriter-write-15 to_hf-FolderWriter-__exit__-1
to_hf-shutil-copyfile-2 to_hf-os-replace-2
"""
"""direction-owner-function-call; the last os.replace of each gives the target its name."""


def test_killed_anywhere(source, tmp_path):
    """Forks of one process that has imported everything, each killed by itself at one point."""
    convert.from_hf(source, tmp_path / "ours")
    (folder := tmp_path / "killed").mkdir()
    arguments = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "ours"), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run(
        arguments, input=KILL_POINTS, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    tensors = read_tensors(source)
    for point in KILL_POINTS.split():
        assert not (folder / point).exists()
        (left,) = folder.glob(f".{point}-partial-*")
        # Once its config.json is there too, the result is whole, but for its name.
        assert (left / "config.json").exists() or point.startswith("to_hf")
        step = checkpoint.latest_step(left)
        assert (step is not None) == (point in ("from_hf-os-replace-2", "from_hf-os-replace-3"))
        if step is not None:
            found = checkpoint.load_params(left, CONFIG)
            assert_same_bits(dict(convert.params_to_hf(found, CONFIG)), tensors)
        if (left / "config.json").exists() and point.startswith("to_hf"):
            assert_same_bits(read_tensors(left), tensors)

    # Running it again simply works, and clears away what was left.
    convert.from_hf(source, folder / "from_hf-Writer-write-15")
    found = checkpoint.load_params(folder / "from_hf-Writer-write-15", CONFIG)
    assert_same_bits(dict(convert.params_to_hf(found, CONFIG)), tensors)
    again = to_hf(tmp_path / "ours", folder / "to_hf-FileWriter-write-15")
    assert_same_bits(read_tensors(again), tensors)
    assert not list(folder.glob("*-write-15-partial-*"))


def test_conversion_that_is_running_is_left_alone(source, tmp_path):
    with convert.new_directory(tmp_path / "ours", 0) as theirs:
        (theirs / "mine.txt").write_text("mine")
        convert.from_hf(source, tmp_path / "ours")
        assert (theirs / "mine.txt").read_text() == "mine"
        shutil.rmtree(tmp_path / "ours")


def test_commands_end_with_their_exit_code(source, tmp_path):
    """One process each, side by side: most of their time is importing jax."""
    broken = shutil.copytree(source, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    module = ["-m", "alpacare_jax.convert", "from_hf"]
    commands = {
        "done": [*module, f"--source={source}", f"--target={tmp_path / 'done'}"],
        "broken": [*module, f"--source={broken}", f"--target={tmp_path / 'never'}"],
        "wrong flag": [*module, f"--source={source}", "--targt=x"],
    }
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    processes = {
        name: subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
        for name, arguments in commands.items()
    }
    ended = {name: (*p.communicate(timeout=120), p.returncode) for name, p in processes.items()}

    out, err, code = ended["done"]
    assert (code, out) == (0, ""), err
    assert err.splitlines() == [f"{tmp_path / 'done'}: 1 MB"]
    assert (tmp_path / "done" / "checkpoints" / "0").is_dir()
    out, err, code = ended["broken"]
    assert code == 1 and err.count("\n") == 1, err
    assert err.startswith("error: ") and str(broken / "model.safetensors") in err
    assert not (tmp_path / "never").exists()
    out, err, code = ended["wrong flag"]
    assert code == 2 and err.count("\n") == 1, err
    assert err.startswith("error: ") and "targt" in err


# Memory


def test_trained_checkpoint_streams_too(source, tmp_path, monkeypatch):
    """Orbax's own chunks span layers; then layers are read together, as many as are allowed."""
    convert.from_hf(source, tmp_path / "ours")
    weights = checkpoint.load_params(tmp_path / "ours", CONFIG)
    trained = tmp_path / "trained"
    trained.mkdir()
    model_folder.copy_model_files(source, trained)
    checkpoint.save_params(trained, weights)
    for folder, limit, layers in [
        ("ours", 2**31, [1, 1, 1]),
        ("trained", 2**31, [3]),
        ("trained", 2 * 4 * 64 * 96, [2, 1]),
        ("trained", 1, [1, 1, 1]),
    ]:
        monkeypatch.setattr(layerwise, "PIECE_BYTES", limit)
        arrays = layerwise.open_arrays(tmp_path / folder, CONFIG, "best")
        pieces = layerwise.pieces(arrays, CONFIG)
        found = [len(p.layers) for p in pieces if p.weight.path == "layers.mlp.up_proj"]
        assert found == layers
        back = to_hf(tmp_path / folder, tmp_path / f"{folder}-{limit}")
        assert_same_bits(read_tensors(back), read_tensors(source))


def test_what_training_saves_has_chunks_of_one_layer(source, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHUNK_BYTES", 3 * 4 * 64 * 96 - 1)
    convert.from_hf(source, tmp_path / "ours")
    weights = checkpoint.load_params(tmp_path / "ours", CONFIG)
    (trained := tmp_path / "trained").mkdir()
    model_folder.copy_model_files(source, trained)
    settings = checkpoint.CheckpointConfig(every_steps=1, keep=1)
    with checkpoint.TrainingCheckpoints(trained, settings) as saved:
        saved.save(7, {"params": weights, "opt_state": {"count": jnp.zeros((), jnp.int32)}}, {})
    arrays = layerwise.open_arrays(trained, CONFIG, "7")
    chunks = {path: array.chunk_layout.read_chunk.shape for path, array in arrays.items()}
    assert chunks["layers.mlp.up_proj"] == (1, 64, 96)
    assert chunks["layers.self_attn.k_proj"] == (3, 64, 2, 16), "small: in one piece"
    assert chunks["embed_tokens"] == (384, 64)
    assert_same_bits(read_tensors(to_hf(trained, tmp_path / "back")), read_tensors(source))


def test_cast_that_would_overflow_is_named(tmp_path):
    tensors = hf_tensors(PLAIN)
    tensors[f"{Q1}.weight"][3, 4] = 1e5
    convert.from_hf(write_hf(tmp_path / "hf", PLAIN, tensors), tmp_path / "ours")
    with fails_and_leaves_nothing(tmp_path, ValueError, f"{Q1}.weight", "float16", "--dtype"):
        to_hf(tmp_path / "ours", tmp_path / "back", "float16")


PEAK = """
import sys
from pathlib import Path
from alpacare_jax import convert
{command}
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_peak_memory_does_not_follow_the_model(tmp_path):
    """400 MB of weights, whose largest tensor has 9 MB: half of the model never is in memory."""
    config = dataclasses.replace(
        PLAIN, hidden_size=1024, intermediate_size=2304, num_attention_heads=64,
        num_key_value_heads=64, head_dim=16, num_hidden_layers=9,
    )  # fmt: skip
    tensors = {key: np.zeros(shape, np.float32) for key, shape in hf_shapes(config).items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    source = write_hf(tmp_path / "hf", config, tensors)
    del tensors

    def peak(command: str, *arguments: Path) -> int:
        code = PEAK.format(command=command)
        output = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            check=True, capture_output=True, text=True, cwd=REPOSITORY,
        ).stdout  # fmt: skip
        return 1024 * int(output)

    small = write_hf(tmp_path / "small", PLAIN)
    command = "convert.from_hf(*map(Path, sys.argv[1:]))"
    base = peak(command, small, tmp_path / "small-ours")
    assert peak(command, source, tmp_path / "ours") - base < size / 2
    command = "convert.to_hf(*map(Path, sys.argv[1:]), 'best', '')"
    assert peak(command, tmp_path / "ours", tmp_path / "back") - base < size / 2


# GGUF

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="session")
def gguf():
    return pytest.importorskip("gguf", reason="it writes the files that are read here")


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def write_gguf(gguf, path: Path, config: LlamaConfig, kind: str, **changes) -> dict:
    """Writes a GGUF file as llama.cpp does; returns the weights it holds, in HF's layout."""
    architecture = changes.pop("architecture", "llama")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    write_gguf_tokenizer(
        gguf, writer, config.vocab_size, changes.pop("pre", "smollm"), changes.pop("unknown", 0)
    )
    if scaling := changes.pop("rope_scaling", None):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
    quantised = gguf.GGMLQuantizationType[kind]
    expected = {}
    for key, tensor in (hf_tensors(config) | changes.pop("tensors", {})).items():
        stem, _, last = key.removeprefix("model.layers.").rpartition(".")
        layer, _, module = stem.partition(".")
        name = f"blk.{layer}.{GGUF_NAMES[module]}" if layer.isdigit() else GGUF_NAMES[stem]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        count = heads.get(name.split(".")[-1])
        stored = permute(tensor, count) if count else tensor
        # llama.cpp keeps vectors in float32. Blocks lie within rows, so that quantising the
        # rows in another order gives the same numbers.
        if tensor.ndim == 1:
            expected[key] = tensor
            writer.add_tensor(f"{name}.{last}", stored)
        else:
            blocks = gguf.quantize(tensor, quantised)
            expected[key] = gguf.dequantize(blocks, quantised)
            writer.add_tensor(
                f"{name}.{last}", gguf.quantize(stored, quantised), raw_dtype=quantised
            )
    for name, tensor in changes.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def write_gguf_tokenizer(gguf, writer, vocab_size: int, pre: str, unknown: int) -> None:
    from tokenizers import pre_tokenizers

    tokens = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = ["Ġ f", "e v", "Ġf ev", "e r", "Ġfev er", "Ġ p", "1 5"]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += [f"<extra_{i}>" for i in range(vocab_size - len(tokens))]
    kinds = gguf.TokenType
    types = [kinds.NORMAL] * len(tokens)
    types[:3] = [kinds.CONTROL] * 3
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_unk_token_id(unknown)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")


@pytest.mark.parametrize(
    ("config", "kind"), [(PLAIN, "F32"), (PLAIN, "F16"), (PLAIN, "Q8_0"), (TIED, "Q4_1")]
)
def test_gguf_gives_the_weights_it_holds(config, kind, gguf, tmp_path):
    expected = write_gguf(gguf, tmp_path / "tiny.gguf", config, kind)
    convert.from_gguf(tmp_path / "tiny.gguf", tmp_path / "ours")
    assert model_folder.read_config(tmp_path / "ours") == config
    result = to_hf(tmp_path / "ours", tmp_path / "hf")
    assert_same_bits(read_tensors(result), expected)
    original = hf_tensors(config)
    off = max(np.abs(expected[key] - original[key]).max() for key in original)
    assert (off == 0) == (kind == "F32")
    assert off < {"F32": 1e-9, "F16": 1e-3, "Q8_0": 0.01, "Q4_1": 0.06}[kind]


@pytest.mark.parametrize(("config", "kind"), [(PLAIN, "Q8_0"), (TIED, "Q4_1")])
def test_gguf_is_what_transformers_reads(config, kind, gguf, tmp_path, torch, transformers):
    write_gguf(gguf, tmp_path / "tiny.gguf", config, kind)
    convert.from_gguf(tmp_path / "tiny.gguf", tmp_path / "ours")
    result = to_hf(tmp_path / "ours", tmp_path / "hf")
    ours = transformers.AutoModelForCausalLM.from_pretrained(result)
    # from_pretrained(gguf_file=...) ends in the same function, but asks for accelerate first.
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    read = load_gguf_checkpoint(
        str(tmp_path / "tiny.gguf"), return_tensors=True, model_to_load=ours
    )
    settings = LlamaConfig.from_hf(read["config"])
    # Its metadata is float32: 9.999999747378752e-06 is 1e-5. GGUF has no key for what is tied.
    assert settings.rms_norm_eps == pytest.approx(config.rms_norm_eps)
    assert dataclasses.replace(settings, rms_norm_eps=config.rms_norm_eps) == config
    state = ours.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    assert state.keys() == read["tensors"].keys()
    for key, tensor in state.items():
        assert torch.equal(tensor, read["tensors"][key]), key


def test_gguf_tokenizer(gguf, tmp_path):
    write_gguf(gguf, tmp_path / "tiny.gguf", PLAIN, "F32")
    convert.from_gguf(tmp_path / "tiny.gguf", tmp_path / "ours")
    tokenizer = model_folder.load_tokenizer(tmp_path / "ours")
    # Padding is never EOS, though the file says so.
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert not tokenizer.adds_bos
    ids = tokenizer.encode("a fever 15")
    assert [tokenizer.piece(i) for i in ids] == ["a", "Ġfever", "Ġ", "1", "5"]
    assert tokenizer.decode(ids) == "a fever 15"
    settings = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == "{{ messages }}"
    generation = json.loads((tmp_path / "ours" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.mark.parametrize(("unknown", "pad"), [(0, 0), (2, 1)])
def test_padding_of_a_gguf_is_never_its_eos(unknown, pad, gguf, tmp_path):
    write_gguf(gguf, tmp_path / "tiny.gguf", PLAIN, "F32", unknown=unknown)
    files = gguf_file.open_gguf(tmp_path / "tiny.gguf").files()
    assert files["config.json"]["pad_token_id"] == pad
    assert files["generation_config.json"]["pad_token_id"] == pad
    assert files["tokenizer_config.json"]["pad_token"] == ["<unk>", "<s>"][pad]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": "qwen2"}, ["'qwen2'", "not 'llama'"]),
        ({"rope_scaling": "linear"}, ["rope scaling", "from_hf"]),
        # So llama.cpp writes Llama 3.1's scaling: no setting, but a table of divisors.
        ({"rope_freqs.weight": np.full(8, 8, "f")}, ["rope scaling", "from_hf"]),
        ({"pre": "llama-bpe"}, ["'gpt2'/'llama-bpe'"]),
        ({"blk.0.ffn_gate_inp.weight": np.ones((4, 64), "f")}, ["blk.0.ffn_gate_inp.weight"]),
        ({"blk.0.attn_q.bias": np.ones(64, "f")}, ["left-over", f"{Q1.replace('1', '0')}.bias"]),
        (
            {"tensors": {"model.layers.2.mlp.up_proj.weight": np.ones((64, 96), "f")}},
            ["model.layers.2.mlp.up_proj.weight", "(64, 96)"],
        ),
    ],
)
def test_gguf_that_is_not_read_is_named(changes, named, gguf, tmp_path):
    write_gguf(gguf, tmp_path / "tiny.gguf", PLAIN, "F32", **changes)
    with fails_and_leaves_nothing(tmp_path, ValueError, *named):
        convert.from_gguf(tmp_path / "tiny.gguf", tmp_path / "ours")


@pytest.mark.parametrize("kept", [0, 3, 100, 0.3, 0.9, -1])
def test_truncated_gguf_is_one_clear_error(kept, gguf, tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(gguf, path, PLAIN, "Q8_0")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with fails_and_leaves_nothing(tmp_path, ValueError, str(path), "truncated"):
        convert.from_gguf(path, tmp_path / "ours")


def test_gguf_without_its_package_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with fails_and_leaves_nothing(tmp_path, ValueError, "alpacare-jax[convert]"):
        convert.from_gguf(tmp_path / "tiny.gguf", tmp_path / "ours")


def test_params_keep_their_dtype_on_devices(tmp_path):
    """`load_params` casts only when asked to."""
    source = write_hf(tmp_path / "hf", PLAIN, dtype="bfloat16")
    convert.from_hf(source, tmp_path / "ours")
    stored = checkpoint.load_params(tmp_path / "ours", PLAIN)
    cast = checkpoint.load_params(tmp_path / "ours", PLAIN, dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {jnp.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype("float32"), b), stored, cast)
