"""Weight diffs as Stanford's script has them, and files of PyTorch's that are refused."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from alpacare_jax.checkpoints import weight_diff
from alpacare_jax.formats import hf_weights, meta_folder, torch_file
from common.messages import log
from tests.support import published_folders
from tests.support.hf_folders import fails_and_leaves_nothing, read_tensors
from tests.support.published_folders import LLAMA, PIECES, random_tensors

INV_FREQ = (1 / 10_000 ** (np.arange(0, 16, 2) / 16)).astype(np.float32)


@pytest.fixture
def base(torch, sentencepiece_dir, tmp_path):
    (folder := tmp_path / "base").mkdir()
    published_folders.llama_hf(torch, folder, sentencepiece_dir / "tokenizer.model")
    return folder


@pytest.fixture
def tuned(torch, sentencepiece_dir, tmp_path):
    (folder := tmp_path / "tuned").mkdir()
    published_folders.chatdoctor(torch, folder, sentencepiece_dir / "tokenizer.model")
    return folder


def stanford(torch, base_tensors, tuned_tensors):
    """(diff, sum) by the arithmetic of stanford_alpaca weight_diff.py, in PyTorch."""
    raw = {key: torch.from_numpy(t.astype(np.float32)) for key, t in base_tensors.items()}
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        raw[key] = torch.cat([raw[key], raw[key].mean(dim=0, keepdim=True)])
    own = {key: torch.from_numpy(t) for key, t in tuned_tensors.items()}
    buffers = [torch.from_numpy(INV_FREQ)] * LLAMA.num_hidden_layers
    total = sum(t.sum() for t in [*own.values(), *buffers])
    return {key: (t - raw[key]).numpy() for key, t in own.items()}, float(total)


def test_a_diff_is_stanfords_and_recovers_the_model(torch, base, tuned, tmp_path, capsys):
    expected, total = stanford(torch, read_tensors(base), tuned_tensors := tensors_of(tuned))
    weight_diff.make(base, tuned, tmp_path / "diff")
    diff = read_tensors(tmp_path / "diff")
    assert diff.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_allclose(diff[key], array, atol=1e-6, err_msg=key)
    run = json.loads((tmp_path / "diff" / "run.json").read_text())
    assert abs(run["sum"] - total) < 0.01
    weight_diff.recover(base, tmp_path / "diff", tmp_path / "again", "", log)
    assert "as it should be" in capsys.readouterr().err
    for key, array in read_tensors(tmp_path / "again").items():
        np.testing.assert_allclose(array, tuned_tensors[key], atol=1e-6, err_msg=key)
    for name in ("tokenizer.model", "added_tokens.json", "special_tokens_map.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tuned / name).read_bytes()


def tensors_of(folder):
    return {t.key: t.read() for t in hf_weights.tensors(hf_weights.files(folder))[0]}


def test_the_published_sum_is_checked(torch, base, tuned, tmp_path, monkeypatch, capsys):
    """A diff of Stanford's has no record; its sum is known by its sizes."""
    weight_diff.make(base, tuned, tmp_path / "diff")
    total = json.loads((tmp_path / "diff" / "run.json").read_text())["sum"]
    (tmp_path / "diff" / "run.json").unlink()
    weight_diff.recover(base, tmp_path / "diff", tmp_path / "unknown", "", log)
    assert "none is known to compare it with" in capsys.readouterr().err
    monkeypatch.setitem(weight_diff.VARIANTS, "llama-7b", LLAMA)
    sizes = LLAMA.sizes | {"V": 32_001}
    assert weight_diff.expected_sum(opened(tmp_path / "diff")) is None
    found = opened(tmp_path / "diff")
    monkeypatch.setattr(type(found.config), "sizes", property(lambda _: sizes))
    assert weight_diff.expected_sum(found) == weight_diff.PUBLISHED_SUM == 50637.1836
    monkeypatch.undo()
    monkeypatch.setattr(weight_diff, "expected_sum", lambda _: total)
    weight_diff.recover(base, tmp_path / "diff", tmp_path / "good", "float16", log)
    monkeypatch.setattr(weight_diff, "expected_sum", lambda _: total + 0.1)
    with fails_and_leaves_nothing(tmp_path, ValueError, "the sum of all numbers is", "damaged"):
        weight_diff.recover(base, tmp_path / "diff", tmp_path / "never", "", log)


def opened(folder):
    return weight_diff.Folder.open(folder)


def test_a_diff_of_another_base_is_refused(base, tuned, tmp_path):
    with fails_and_leaves_nothing(tmp_path, ValueError, "is not the base of", "401 and 400"):
        weight_diff.make(tuned, base, tmp_path / "never")


def test_new_rows_are_the_mean_of_the_old():
    old = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(
        hf_weights.resized(old, 6), [*old, [4.5, 5.5, 6.5], [4.5, 5.5, 6.5]]
    )


class Evil:
    def __reduce__(self):
        return (print, ("run",))


REFUSED = {
    "a program": (lambda torch, path: torch.save({"w": Evil()}, path), "could run any program"),
    "a module": (lambda torch, path: torch.save(torch.nn.Linear(2, 2), path), "any program"),
    "a list": (lambda torch, path: torch.save([torch.ones(2)], path), "holds a list"),
    "a training state": (
        lambda torch, path: torch.save({"model": {"w": torch.ones(2)}, "epoch": 1}, path),
        "model is dict",
    ),
    "whole numbers": (lambda torch, path: torch.save({"w": torch.ones(2).int()}, path), "int32"),
    "a plain pickle": (lambda _, path: path.write_bytes(pickle.dumps({"w": 1})), "truncated, or"),
    "another archive": (lambda _, path: zipfile.ZipFile(path, "w").close(), "is damaged"),
    "half a file": (
        lambda torch, path: (
            torch.save({"w": torch.ones(99)}, path),
            path.write_bytes(path.read_bytes()[:-80]),
        ),
        "truncated, or",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_weights_is_refused(name, torch, tmp_path, capsys):
    write, reason = REFUSED[name]
    write(torch, path := tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=reason) as caught:
        torch_file.tensors(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert capsys.readouterr().out == "", "nothing of it ran"


def test_a_file_of_pytorch_before_1_6_is_read_after_the_command_of_its_error(torch, tmp_path):
    path = tmp_path / "a model" / "pytorch_model.bin"
    path.parent.mkdir()
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="PyTorch before 1") as caught:
        torch_file.tensors(path)
    command = str(caught.value).partition("into today's: ")[2]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, check=True, env=environment)
    (tensor,) = torch_file.tensors(path)
    np.testing.assert_array_equal(tensor.read(), [1, 1])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_tensors_of_every_dtype_stay_on_disk(torch, tmp_path):
    tensors = {
        name: torch.arange(6, dtype=getattr(torch, name)).reshape(2, 3).T
        for name in ("float64", "float32", "float16", "bfloat16")
    }
    torch.save(tensors, tmp_path / "a.bin")
    for tensor in torch_file.tensors(tmp_path / "a.bin"):
        array = tensor.read()
        assert (array.shape, array.dtype, tensor.shape) == ((3, 2), tensor.dtype, (3, 2))
        np.testing.assert_array_equal(array.astype(int), [[0, 3], [1, 4], [2, 5]])


def add_router(folder: Path) -> None:
    import torch

    path = folder / "consolidated.00.pth"
    torch.save(torch.load(path) | {"layers.0.router.weight": torch.ones(2)}, path)


META_REFUSED = {
    "a gap": (lambda f: (f / "consolidated.00.pth").rename(f / "consolidated.01.pth"), "a gap"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "tokenizer.model exists"),
    "LLaMA 3's tokenizer of another model": (
        lambda f: published_folders.write_tiktoken(f / "tokenizer.model", ["fever"], merges=2),
        "has 258 tokens, with LLaMA 3's control tokens 256 more, but the model has 400",
    ),
    "a damaged tokenizer of LLaMA 3": (
        lambda f: (f / "tokenizer.model").write_text("IQ== 0\nIg== 2\n"),
        "tokenizer.model is damaged",
    ),
    "a weight of a later model": (
        add_router,
        "layers.0.router.weight is not a weight of LLaMA 1 to 3",
    ),
    "no settings": (lambda f: (f / "params.json").unlink(), "params.json"),
    "other settings": (lambda f: (f / "params.json").write_text("{}"), "lack 'dim'"),
}


@pytest.mark.parametrize("name", META_REFUSED)
def test_metas_folders_that_are_refused(name, torch, sentencepiece_dir, tmp_path):
    (folder := tmp_path / "7B").mkdir()
    tensors = random_tensors(LLAMA, "float16")
    published_folders.write_meta(torch, folder, tensors, LLAMA, 1)
    (folder / "tokenizer.model").write_bytes((sentencepiece_dir / "tokenizer.model").read_bytes())
    change, reason = META_REFUSED[name]
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=reason) as caught:
        meta_folder.open_folder(folder)
    assert "\n" not in str(caught.value)
    assert LLAMA.vocab_size == PIECES
