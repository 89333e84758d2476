"""Conversion keeps every bit, and a damaged or foreign source leaves no target behind."""

import dataclasses
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from alpacare_jax import convert
from alpacare_jax.checkpoints import checkpoint, export, identity, layerwise, model_folder
from alpacare_jax.formats import safetensors_file
from alpacare_jax.model.llama import Llama
from tests.conftest import LIMIT, REPOSITORY
from tests.support.hf_folders import (
    CONFIG,
    DTYPES,
    PLAIN,
    TIED,
    assert_same_bits,
    change_json,
    fails_and_leaves_nothing,
    hf_shapes,
    hf_tensors,
    params_to_hf,
    read_tensors,
    to_hf,
    write_hf,
)

CARRIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def source(tmp_path) -> Path:
    return write_hf(tmp_path / "hf", CONFIG)


@pytest.mark.parametrize("shard_bytes", [None, 40_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_keeps_every_bit(dtype, shard_bytes, tmp_path, monkeypatch):
    tensors = hf_tensors(CONFIG, dtype)
    strange = np.array([-0.0, 6e-8, 1e-40, -6e4], DTYPES[dtype])
    for tensor in tensors.values():
        tensor.ravel()[: len(strange)] = strange
    source = write_hf(tmp_path / "hf", CONFIG, tensors, dtype)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "README.md").write_text("not a model file")
    convert.from_hf(source, tmp_path / "ours")
    if shard_bytes:
        monkeypatch.setattr(safetensors_file, "MAX_SHARD_BYTES", shard_bytes)
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


def test_relative_paths(source, tmp_path, monkeypatch):
    """tensorstore rejects a path with `..` in it, and `.` is a target without a name."""
    (tmp_path / "a" / "empty").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")
    convert.from_hf(Path("../hf"), Path("../ours"))
    to_hf(Path("../ours"), Path("../link/../a/back"))
    monkeypatch.chdir(tmp_path / "a" / "empty")
    convert.from_hf(Path("../back"), Path("."))
    monkeypatch.chdir(tmp_path / "a" / "empty")  # another folder has this name now
    to_hf(Path("."), Path("../../again"))
    assert_same_bits(read_tensors(tmp_path / "again"), read_tensors(source))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "again", "hf", "link", "ours"]


def test_run_json_tells_where_it_came_from(source, tmp_path):
    convert.from_hf(source, tmp_path / "ours")
    record = json.loads((tmp_path / "ours" / "run.json").read_text())
    assert record["command"] == "convert from_hf"
    assert record["source"] == str(source)
    assert record["end"] >= record["start"]


def test_a_release_names_no_host_and_no_folder(source, tmp_path):
    for name, changes in (
        ("config.json", {"_name_or_path": "/home/me/llama"}),
        (
            "tokenizer_config.json",
            {
                "name_or_path": "/home/me/llama",
                "special_tokens_map_file": "/home/me/.cache/map.json",
                "tokenizer_file": None,
                "vocab_file": "tokenizer.model",
            },
        ),
    ):
        path = source / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    convert.from_hf(source, tmp_path / "ours")
    release = to_hf(tmp_path / "ours", tmp_path / "release")
    files = [path for path in release.iterdir() if path.suffix != ".safetensors"]
    for text in (path.read_text() for path in files):
        assert platform.node() not in text.split('"') and str(tmp_path) not in text
        assert "/home/me" not in text
    settings = json.loads((release / "tokenizer_config.json").read_text())
    assert (settings["tokenizer_file"], settings["vocab_file"]) == (None, "tokenizer.model")
    record = json.loads((release / "run.json").read_text())
    assert record["model"] == identity.of_model(tmp_path / "ours", 0)
    assert record["packages"] and record["end"]


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
        monkeypatch.setattr(safetensors_file, "MAX_SHARD_BYTES", 100_000)
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


def without(key: str):
    return lambda tensors: tensors.pop(key)


def put(key: str, array: np.ndarray):
    return lambda tensors: tensors.update({key: array})


Q1 = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("model.layers.3.mlp.up_proj.weight", np.ones((96, 64), "f")), ["unexpected", "s.3.m"]),
        (put("lm_head.bias", np.ones(384, "f")), ["unexpected key lm_head.bias"]),
        (without(f"{Q1}.weight"), [f"missing keys, the first is {Q1}.weight", "1 "]),
        (without(f"{Q1}.bias"), [f"{Q1}.bias"]),
        (without("lm_head.weight"), ["missing", "lm_head.weight"]),
        (put(f"{Q1}.weight", np.ones((32, 64), "f")), [f"{Q1}.weight", "(32, 64)", "(64, 64)"]),
        # As many numbers, another shape: a transposed matrix must not be reshaped into place.
        (
            put("model.layers.0.mlp.up_proj.weight", np.ones((64, 96), "f")),
            ["up_proj.weight", "(64, 96)", "(96, 64)"],
        ),
        (
            put(f"{Q1}.weight", np.ones((64, 64), np.float16)),
            [f"{Q1}.weight is float16", "float32"],
        ),
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
    with fails_and_leaves_nothing(tmp_path, ValueError, f"{Q1}.weight appears in two files"):
        convert.from_hf(source, tmp_path / "ours")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vocab_size": 400}, ["weight has shape (384, 64)", "(400, 64)"]),
        ({"num_hidden_layers": 2}, ["unexpected key model.layers.2."]),
        ({"num_hidden_layers": 4}, ["missing keys", "model.layers.3."]),
        ({"hidden_size": 128, "head_dim": 16}, ["has shape", ", 128)"]),
        ({"num_key_value_heads": 4}, ["k_proj.bias has shape (32,)", "(64,)"]),
        ({"tie_word_embeddings": True}, ["lm_head.weight differs", "tie_word_embeddings to false"]),
        ({"attention_bias": False}, ["unexpected key", "_proj.bias"]),
        ({"model_type": "mistral"}, ["mistral"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ["yarn"]),
        # The tokenizer has ids 0 to 357 and EOS 2.
        ({"eos_token_id": 7}, ["eos_token_id 2", "has 7", "tokenizer files"]),
        ({"bos_token_id": 7}, ["bos_token_id 1", "has 7"]),
    ],
)
def test_config_of_another_model_is_named(change, named, source, tmp_path):
    change_json(source / "config.json", **change)
    with fails_and_leaves_nothing(tmp_path, ValueError, *named):
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


def test_to_hf_names_the_saved_steps(source, tmp_path):
    convert.from_hf(source, tmp_path / "ours")
    with fails_and_leaves_nothing(tmp_path, ValueError, "'7'", "[0]", "latest"):
        export.to_hf(tmp_path / "ours", tmp_path / "back", "7", "")


def test_to_hf_of_a_folder_without_checkpoint(source, tmp_path):
    with fails_and_leaves_nothing(tmp_path, FileNotFoundError, "no complete checkpoint"):
        to_hf(source, tmp_path / "back")


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
    fail_at(monkeypatch, safetensors_file.FolderWriter, count, error)
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
from alpacare_jax.checkpoints import export, layerwise
from alpacare_jax.formats import safetensors_file

source, ours, folder = map(Path, sys.argv[1:])
owners = {"Writer": layerwise.Writer, "FolderWriter": safetensors_file.FolderWriter, "os": os,
          "shutil": shutil}
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
        export.to_hf(ours, folder / point, "best", "")
    os._exit(0)
"""


KILL_POINTS = """
from_hf-Writer-write-1 from_hf-Writer-write-15 from_hf-Writer-__exit__-1 from_hf-os-replace-1
from_hf-os-replace-2 from_hf-os-replace-3 from_hf-os-replace-4
to_hf-FolderWriter-write-1 to_hf-FolderWriter-write-15 to_hf-FolderWriter-__exit__-1
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
        assert (step is not None) == (point in ("from_hf-os-replace-3", "from_hf-os-replace-4"))
        if step is not None:
            found = checkpoint.load_params(left, CONFIG)
            assert_same_bits(dict(params_to_hf(found, CONFIG)), tensors)
        if (left / "config.json").exists() and point.startswith("to_hf"):
            assert_same_bits(read_tensors(left), tensors)

    # Running it again simply works, and clears away what was left.
    convert.from_hf(source, folder / "from_hf-Writer-write-15")
    found = checkpoint.load_params(folder / "from_hf-Writer-write-15", CONFIG)
    assert_same_bits(dict(params_to_hf(found, CONFIG)), tensors)
    again = to_hf(tmp_path / "ours", folder / "to_hf-FolderWriter-write-15")
    assert_same_bits(read_tensors(again), tensors)
    assert not list(folder.glob("*-write-15-partial-*"))


@pytest.mark.slow
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
    ended = {name: (*p.communicate(timeout=LIMIT), p.returncode) for name, p in processes.items()}

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
from alpacare_jax.checkpoints import export
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
    command = "export.to_hf(*map(Path, sys.argv[1:]), 'best', '')"
    assert peak(command, tmp_path / "ours", tmp_path / "back") - base < size / 2
