"""Folders as people have them: read as transformers reads them, or refused in words that help."""

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from alpacare_jax import convert
from alpacare_jax.checkpoints import identity, model_folder
from common import cli
from tests.support.hf_folders import (
    PLAIN,
    TIED,
    assert_same_bits,
    change_json,
    fails_and_leaves_nothing,
    hf_tensors,
    read_tensors,
    to_hf,
    write_hf,
)

ROWS = PLAIN.vocab_size
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 499723\n"
SETTINGS = (
    "config.json generation_config.json tokenizer_config.json special_tokens_map.json "
    "added_tokens.json tokenizer.json"
).split()
INDEX = "model.safetensors.index.json"


def weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    save_file(change(read_tensors(folder)), path, metadata={"format": "pt"})


def renamed(rename):
    return lambda folder: weights(folder, lambda t: {rename(key): a for key, a in t.items()})


def prefixed(prefix: str):
    return renamed(lambda key: prefix + key)


def index(**files: str):
    """An index that names these files, key -> file."""
    content = {"metadata": {}, "weight_map": files}
    return lambda folder: (folder / INDEX).write_text(json.dumps(content))


def write(name: str, content):
    if not isinstance(content, str):
        content = json.dumps(content)
    return lambda folder: (folder / name).write_text(content)


def rename(old: str, new: str):
    return lambda folder: (folder / old).rename(folder / new)


def settings(name: str, **changes):
    return lambda folder: change_json(folder / name, **changes)


def also(*changes):
    def apply(folder: Path) -> None:
        for change in changes:
            change(folder)

    return apply


def two_models(folder: Path) -> None:
    save_file(hf_tensors(PLAIN, "float16"), folder / "old.safetensors")
    index(a="old.safetensors")(folder)


def buffers(folder: Path) -> None:
    layer = "model.layers.1.self_attn."
    added = {
        "model.rotary_emb.inv_freq": np.ones(8, np.float32),
        f"{layer}rotary_emb.inv_freq": np.ones(8, np.float32),
        f"{layer}rotary_emb.cos_cached": np.ones((1, 1, 4, 8), np.float32),
        f"{layer}bias": np.ones((1, 1, 4, 4), bool),
        f"{layer}masked_bias": np.array(-1e9, np.float32),
    }
    weights(folder, lambda tensors: tensors | added)


def wider(rows: int):
    def change(folder: Path) -> None:
        def padded(array: np.ndarray) -> np.ndarray:
            return np.concatenate([array, np.zeros((rows, 64), array.dtype)])

        weights(folder, lambda t: {k: padded(a) if len(a) == ROWS else a for k, a in t.items()})
        change_json(folder / "config.json", vocab_size=ROWS + rows)

    return change


def added_token(token: str, token_id: int, special: bool = True):
    """In tokenizer.json, which numbers added tokens after its vocabulary, and added_tokens.json."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        spec = json.loads(path.read_text())
        vocab = spec["model"]["vocab"]
        vocab |= {f"filler{i}": i for i in range(len(vocab), min(token_id, ROWS))}
        new = {"id": token_id, "content": token, "special": special}
        spec["added_tokens"].append(spec["added_tokens"][-1] | new)
        path.write_text(json.dumps(spec))
        (folder / "added_tokens.json").write_text(json.dumps({token: token_id}))

    return change


ALPACA = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "[PAD]"}

READ = {
    "the shards of an older index are gone": index(a="model-00001-of-00002.safetensors"),
    "one of them is gone": also(
        index(a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors"),
        write("model-00002-of-00002.safetensors", ""),
    ),
    "an index of the one file": index(a="model.safetensors"),
    "PyTorch's files beside it": write("pytorch_model.bin", "x"),
    "buffers": buffers,
    "many spare rows, as DeepSeek-LLM": wider(2385),
    "more still": wider(10_000),
    "a <pad> past the rows, as Llama 2 of July 2023": added_token("<pad>", ROWS),
    "Alpaca's settings, as ChatDoctor": also(
        wider(1),
        added_token("[PAD]", ROWS),
        settings("tokenizer_config.json", **ALPACA),
        write("special_tokens_map.json", ALPACA),
    ),
}
"""What transformers reads, and reads the same."""

WRAPPED = {
    "torch.compile": prefixed("_orig_mod."),
    "torch.compile of the inner model": renamed(lambda k: k.replace("model.", "model._orig_mod.")),
    "DataParallel": prefixed("module."),
    "both": prefixed("module._orig_mod."),
    "FSDP": renamed(lambda k: "_fsdp_wrapped_module." + k.replace("mlp.", "mlp._orig_mod.")),
    "Lightning": prefixed("model."),
    "peft": prefixed("base_model.model."),
}
"""Models saved inside a wrapper, which transformers would fill with random numbers."""


REFUSED = {
    "two models": (two_models, ["model.safetensors", INDEX, "delete the older one"]),
    "an index without a map": (write(INDEX, {"metadata": {}}), [INDEX, "weight_map"]),
    "a map of numbers": (write(INDEX, {"weight_map": {"a": 1}}), [INDEX, "weight_map"]),
    "a map that is a list": (write(INDEX, {"weight_map": ["a"]}), [INDEX, "weight_map"]),
    "an empty map": (write(INDEX, {"weight_map": {}}), [INDEX, "weight_map"]),
    "a map to another folder": (index(a="../x.safetensors"), [INDEX, "weight_map"]),
    "a shard of PyTorch's": (
        rename("model.safetensors", "pytorch_model-00001-of-00001.bin"),
        ["pytorch_model-00001-of-00001.bin is a shard", "pytorch_model.bin.index.json"],
    ),
    "GGUF": (rename("model.safetensors", "m.gguf"), ["convert from_gguf --source=", "m.gguf"]),
    "Meta's files": (
        rename("model.safetensors", "consolidated.00.pth"),
        ["consolidated.00.pth is Meta's", "convert from_meta --source="],
    ),
    "an adapter": (
        also(rename("model.safetensors", "a.safetensors"), write("adapter_config.json", {})),
        ["an adapter", "convert merge"],
    ),
    "shards without their index": (
        rename("model.safetensors", "model-00001-of-00001.safetensors"),
        ["is a shard", INDEX],
    ),
    "another name": (
        rename("model.safetensors", "model.fp16.safetensors"),
        ["model.fp16.safetensors", "rename it to model.safetensors"],
    ),
    "a broken link": (
        also(
            lambda folder: (folder / "model.safetensors").unlink(),
            lambda folder: (folder / "model.safetensors").symlink_to("../blobs/12ab"),
        ),
        ["model.safetensors is a link to a file that is not there"],
    ),
    "weights of 4 bits": (
        lambda f: weights(f, lambda t: t | {"model.norm.qweight": np.ones(8, np.int32)}),
        ["model.norm.qweight is I32", "before it was quantised"],
    ),
    "one weight under two names": (
        lambda f: weights(f, lambda t: t | {"module.model.norm.weight": t["model.norm.weight"]}),
        ["model.norm.weight appears in two files, or under two names"],
    ),
    "a head that was tied": (
        lambda f: weights(f, lambda t: {k: a for k, a in t.items() if "lm_head" not in k}),
        ["lm_head.weight", "set tie_word_embeddings to true"],
    ),
    "a number of layers that is damaged": (
        settings("config.json", num_hidden_layers=10**12),
        ["num_hidden_layers 1,000,000,000,000", "30 tensors"],
    ),
    "deep JSON": (
        write("special_tokens_map.json", '{"a":' + "[" * 100_000),
        ["special_tokens_map.json"],
    ),
    "a token that is a number": (
        settings("tokenizer_config.json", eos_token=2),
        ["tokenizer_config.json", "eos_token is 2"],
    ),
    "a token without text": (
        write("special_tokens_map.json", {"pad_token": {"id": 3}}),
        ["special_tokens_map.json", "pad_token"],
    ),
    "ids by place": (
        settings("tokenizer_config.json", added_tokens_decoder=["<pad>"]),
        ["tokenizer_config.json", "added_tokens_decoder"],
    ),
    "an id that is a text": (
        settings("tokenizer_config.json", added_tokens_decoder={"x": {"content": "<pad>"}}),
        ["tokenizer_config.json", "'x', not an id"],
    ),
    "an id that is not whole": (write("added_tokens.json", {"<pad>": 1.5}), ["1.5, not an id"]),
    "a flag that is a text": (
        settings("tokenizer_config.json", add_bos_token="false"),
        ["tokenizer_config.json", "add_bos_token is 'false'"],
    ),
    "two ends": (
        write("special_tokens_map.json", {"eos_token": "<s>"}),
        ["eos_token is '</s>' in tokenizer_config.json", "'<s>' in special_tokens_map.json"],
    ),
    "a tokenizer without its model": (write("tokenizer.json", {}), ["tokenizer.json is damaged"]),
    "added tokens of another form": (
        settings("tokenizer.json", added_tokens={"<s>": 1}),
        ["tokenizer.json is damaged"],
    ),
    "an end of generation that is a text": (
        write("generation_config.json", {"eos_token_id": ["</s>"]}),
        ["generation_config.json: eos_token_id is ['</s>']"],
    ),
    "a token past the rows": (
        added_token("<|user|>", ROWS, special=False),
        [f"id {ROWS} ('<|user|>')", "lies past them", "remove this token"],
    ),
    "an end past the rows": (
        also(
            added_token("<|end|>", ROWS),
            settings("tokenizer_config.json", eos_token="<|end|>"),
            settings("config.json", eos_token_id=ROWS),
        ),
        [f"id {ROWS} ('<|end|>')", "lies past them"],
    ),
    "many control tokens past the rows": (
        also(*(added_token(f"<|{i}|>", ROWS + i) for i in range(65))),
        [f"id {ROWS + 64} ('<|64|>')", "at most 64 are added"],
    ),
    "a tokenizer of another model": (wider(20_000), ["at most 16,384 may be unused"]),
    "an end of another model": (
        settings("config.json", eos_token_id=1),
        ["config.json has 1 ('</s>' is 2)", "set eos_token_id to 2"],
    ),
}
"""What cannot be read as it is, and what the message says."""


@pytest.fixture
def source(tmp_path) -> Path:
    return write_hf(tmp_path / "hf", PLAIN)


@pytest.mark.parametrize("name", READ)
def test_what_transformers_reads_is_read(name, source, tmp_path):
    tensors = hf_tensors(PLAIN)
    READ[name](source)
    convert.from_hf(source, tmp_path / "ours")
    back = read_tensors(to_hf(tmp_path / "ours", tmp_path / "back"))
    assert_same_bits({key: array[: len(tensors[key])] for key, array in back.items()}, tensors)
    tokenizer = model_folder.load_tokenizer(tmp_path / "ours")
    assert tokenizer.bos_id == (2 if "Alpaca" in name else 1)
    assert max(tokenizer.result_ids) < len(back["lm_head.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_transformers_reads_the_same(name, source, tmp_path, torch, transformers):
    READ[name](source)
    convert.from_hf(source, tmp_path / "ours")
    back = read_tensors(to_hf(tmp_path / "ours", tmp_path / "back"))
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype="auto", output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["mismatched_keys"]
    state = {key: t.numpy() for key, t in model.state_dict().items()}
    assert_same_bits({key: array[: len(state[key])] for key, array in back.items()}, state)
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    ours = model_folder.load_tokenizer(tmp_path / "ours")
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    text = "why does fever come with pain in the heart?"
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("config", [PLAIN, TIED], ids=["untied", "tied"])
def test_tokens_past_the_rows_get_the_mean_of_the_others(config, tmp_path, capsys):
    source = write_hf(tmp_path / "hf", config)
    also(added_token("<pad>", ROWS), added_token("[PAD]", ROWS + 1))(source)
    convert.from_hf(source, tmp_path / "ours")
    said = capsys.readouterr().err
    assert f"2 new rows for <pad> (id {ROWS}), [PAD] (id {ROWS + 1}), past the {ROWS} of" in said
    back = read_tensors(to_hf(tmp_path / "ours", tmp_path / "back"))
    for key, array in hf_tensors(config).items():
        if len(array) == ROWS:
            mean = array.astype(np.float64).mean(axis=0).astype(array.dtype)
            array = np.concatenate([array, [mean, mean]])
        np.testing.assert_array_equal(back[key], array, err_msg=key)
    settings = json.loads((tmp_path / "back" / "config.json").read_text())
    assert settings["vocab_size"] == ROWS + 2
    capsys.readouterr()
    convert.from_hf(tmp_path / "back", tmp_path / "again")
    assert "new row" not in capsys.readouterr().err


@pytest.mark.parametrize("name", WRAPPED)
def test_the_names_of_a_wrapper_are_taken_off(name, source, tmp_path, capsys):
    WRAPPED[name](source)
    convert.from_hf(source, tmp_path / "ours")
    assert "keys are not those of LlamaForCausalLM" in capsys.readouterr().err
    assert_same_bits(read_tensors(to_hf(tmp_path / "ours", tmp_path / "back")), hf_tensors(PLAIN))


def test_a_base_model_with_a_tied_head_is_whole(tmp_path):
    """What transformers writes of a LlamaModel: keys without `model.`, no head."""
    source = write_hf(tmp_path / "hf", TIED)
    renamed(lambda key: key.removeprefix("model."))(source)
    convert.from_hf(source, tmp_path / "ours")
    assert_same_bits(read_tensors(to_hf(tmp_path / "ours", tmp_path / "back")), hf_tensors(TIED))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(name, source, tmp_path):
    change, named = REFUSED[name]
    change(source)
    with fails_and_leaves_nothing(tmp_path, (ValueError, FileNotFoundError), *named):
        convert.from_hf(source, tmp_path / "ours")


@pytest.mark.parametrize("content", ["{", "[]", '"text"', '{"a": 1,}'])
@pytest.mark.parametrize("name", [*SETTINGS, INDEX])
def test_a_damaged_settings_file_is_named_when_converting(name, content, source, tmp_path):
    (source / name).write_text(content)
    with fails_and_leaves_nothing(tmp_path, ValueError, str(source / name), "JSON"):
        convert.from_hf(source, tmp_path / "ours")


@pytest.mark.parametrize(
    "name", [*SETTINGS, INDEX, "model.safetensors", "tokenizer.model", "merges.txt"]
)
def test_a_git_lfs_pointer_is_named(name, source, tmp_path):
    (source / name).write_text(POINTER)
    with fails_and_leaves_nothing(
        tmp_path, ValueError, f"{source / name} is a git-lfs pointer", "git lfs pull"
    ):
        convert.from_hf(source, tmp_path / "ours")


def test_sources_that_are_no_folder_say_what_to_give(source, tmp_path):
    converted = tmp_path / "ours"
    convert.from_hf(source, converted)
    cache = tmp_path / "models--org--name" / "snapshots" / "12ab"
    cache.mkdir(parents=True)
    (cache / "config.json").write_text("{}")
    for folder, named in {
        converted: "checkpoints is the weights of a model directory: it is converted already",
        source / "model.safetensors": "it is a file; give its folder",
        cache.parent.parent: f"give {cache}",
        "org/name": "hf download org/name --local-dir hf/name, then python -m alpacare_jax.convert",
    }.items():
        with pytest.raises(FileNotFoundError) as caught:
            convert.from_hf(Path(folder), tmp_path / "never")
        assert named in cli.error_text(caught.value)


def test_the_digests_of_the_source_are_recorded(source, tmp_path):
    convert.from_hf(source, tmp_path / "ours")
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    record = json.loads((tmp_path / "ours" / "run.json").read_text())
    assert record["source_sha256"] == {"model.safetensors": digest}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_bit_flipped_after_conversion_is_reported(source, tmp_path, name, capsys):
    convert.from_hf(source, tmp_path / "ours")
    capsys.readouterr()
    identity.of_model(tmp_path / "ours")
    assert capsys.readouterr().err == ""
    data = bytearray((tmp_path / "ours" / name).read_bytes())
    data[-2] ^= 1
    (tmp_path / "ours" / name).write_bytes(data)
    identity.of_model(tmp_path / "ours")
    assert f"ours: {name} changed after the model was made" in capsys.readouterr().err


def test_a_file_is_compared_with_what_was_downloaded(source, tmp_path):
    """Bits that flip on a disk change neither a file's size nor its time."""
    path = source / "model.safetensors"
    content = bytearray(path.read_bytes())
    notes = source / ".cache/huggingface/download"
    notes.mkdir(parents=True)

    def note(digest: str, seconds: float) -> None:
        (notes / "model.safetensors.metadata").write_text(f"12ab\n{digest}\n{seconds}\n")

    note(hashlib.sha256(content).hexdigest(), time.time())
    convert.from_hf(source, tmp_path / "whole")
    content[-5] ^= 16
    path.write_bytes(content)
    os.utime(path, (0, 0))
    with fails_and_leaves_nothing(tmp_path, ValueError, str(path), "sha256", "download it again"):
        convert.from_hf(source, tmp_path / "ours")
    note("0" * 64, path.stat().st_mtime - 9)  # it was changed on purpose since
    convert.from_hf(source, tmp_path / "changed")
    note("an etag of a small file", time.time())
    convert.from_hf(source, tmp_path / "unknown")
