"""Equal answers in three programs, for each kind of tokenizer; planted faults are found."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alpacare_jax import convert
from alpacare_jax.model import rope
from alpacare_jax.releasing import gguf_writer, programs, proof
from alpacare_jax.releasing.programs import ProgramReply
from tests.alpacare_jax.releasing.conftest import QUESTIONS, TOKENS, Built, build
from tests.alpacare_jax.test_systems import LLAMA32
from tests.support import published_folders
from tests.support.hf_folders import change_json


def prove(built: Built) -> dict[str, proof.AnswerAgreement]:
    arguments = built.folder, built.ggufs, built.settings, QUESTIONS, TOKENS
    return dict(proof.prove(built.trained, *arguments))


def test_answers_are_equal(built):
    found = prove(built)
    assert [*found] == ["transformers", "F16", "Q8_0"]
    for name in ("transformers", "F16"):
        one = found[name]
        assert one.equal + one.near_ties == one.answers == len(QUESTIONS) and not one.different
        assert 0 < one.largest_error < proof.TOLERANCES[name]
    assert found["transformers"].equal == len(QUESTIONS)


def of_llama(folder: Path, request) -> str:
    """SentencePiece, whose space before a text only llama.cpp puts behind BOS too."""
    model = request.getfixturevalue("sentencepiece_dir") / "tokenizer.model"
    published_folders.llama_hf(None, folder, model)
    return "alpaca"


def of_medalpaca(folder: Path, request) -> str:
    """As above, with a template without BOS."""
    of_llama(folder, request)
    return "medalpaca"


def of_llama3(folder: Path, request) -> str:
    """RoPE scaling, tied embeddings, an answer that ends with another token than EOS."""
    byte_level = request.getfixturevalue("byte_level_dir")
    _, tensors = published_folders.llama3_hf(folder, byte_level, LLAMA32)
    tensors["model.embed_tokens.weight"][:3] = 0  # llama.cpp stops at <|im_end|>, by its name
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return "llama3"


def of_chat(folder: Path, request) -> str:
    """A chat template of the tokenizer's own, with BOS at its start."""
    of_llama(folder, request)
    text = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    end = "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    (folder / "chat_template.jinja").write_text(text + end)
    return "chat"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [of_llama, of_medalpaca, of_llama3, of_chat])
def test_answers_are_equal_of_each_kind(kind, request, torch, transformers, tmp_path):
    (tmp_path / "hf").mkdir()
    template = kind(tmp_path / "hf", request)
    convert.from_hf(tmp_path / "hf", tmp_path / "model")
    found = prove(build(tmp_path / "model", tmp_path / "release", template))
    for name in ("transformers", "F16"):
        assert found[name].equal + found[name].near_ties == len(QUESTIONS)
    assert found["transformers"].equal == len(QUESTIONS)


def edited(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def one_weight(built: Built) -> None:
    path = built.folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] += 60
    save_file(tensors, path, metadata={"format": "pt"})


def rewritten(built: Built, **changes) -> None:
    """Writes the F16 file anew, from other settings."""
    settings = dataclasses.replace(built.settings, **changes)
    built.ggufs["F16"].unlink()
    gguf_writer.write(built.folder, built.ggufs["F16"], "F16", settings)


def with_metadata(key: str, value):
    def plant(built: Built, monkeypatch) -> None:
        true = gguf_writer.metadata
        monkeypatch.setattr(gguf_writer, "metadata", lambda *given: true(*given) | {key: value})
        rewritten(built)
        monkeypatch.setattr(gguf_writer, "metadata", true)

    return plant


def unpaired(built: Built, monkeypatch) -> None:
    """Queries and keys in Hugging Face's order, as if llama.cpp rotated them like transformers."""
    true = rope.paired
    monkeypatch.setattr(rope, "paired", lambda array, heads: array)
    rewritten(built)
    monkeypatch.setattr(rope, "paired", true)


def one_gguf_weight(built: Built, monkeypatch) -> None:
    import gguf

    reader = gguf.GGUFReader(built.ggufs["F16"], "r+")
    tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_down.weight")
    tensor.data[3, 5] += np.float16(60)
    tensor.data.flush()


def other_merges(built: Built, monkeypatch) -> None:
    path = built.folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:1]
    path.write_text(json.dumps(content))


FAULTS = {
    "template": lambda b, _: edited(b.folder / "chat_template.jinja", "Response:", "Answer:"),
    "bos": lambda b, _: edited(b.folder / "chat_template.jinja", "bos_token + ", ""),
    "eos": lambda b, _: change_json(b.folder / "generation_config.json", eos_token_id=5),
    "rope": lambda b, _: change_json(b.folder / "config.json", rope_theta=500.0),
    "weight": lambda b, _: one_weight(b),
    "merges": other_merges,
    "gguf template": lambda b, _: rewritten(b, chat_template="{{ messages[0]['content'] }}"),
    "gguf bos": lambda b, _: rewritten(b, adds_bos=False),
    "gguf eos": lambda b, _: rewritten(b, end_ids=[5]),
    "gguf rope": with_metadata("llama.rope.freq_base", 500.0),
    "gguf eps": with_metadata("llama.attention.layer_norm_rms_epsilon", 0.1),
    "gguf weight": one_gguf_weight,
    "gguf pairs": unpaired,
    "Modelfile template": lambda b, _: edited(b.folder / "Modelfile", "Response:", "Answer:"),
    "Modelfile file": lambda b, _: edited(b.folder / "Modelfile", "F16", "Q8_0"),
}
"""What goes wrong in a release, for transformers and for llama.cpp."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, built, tmp_path, monkeypatch):
    plant_and_prove(fault, built, tmp_path, monkeypatch)


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "gguf eos"])
def test_a_fault_is_found_by_the_answers_alone(fault, built, tmp_path, monkeypatch):
    """Without comparing files. Of "gguf eos": llama.cpp knows </s> by its name, and stops at it."""
    monkeypatch.setattr(proof, "check_folder", lambda *_: None)
    monkeypatch.setattr(proof, "check_gguf", lambda *_: None)
    plant_and_prove(fault, built, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "fault", ["rope", "weight", "gguf eos", "gguf rope", "gguf weight", "gguf pairs"]
)
def test_a_fault_is_found_in_the_files_alone(fault, built, tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "compare", lambda *_: proof.AnswerAgreement())
    plant_and_prove(fault, built, tmp_path, monkeypatch)


def plant_and_prove(fault: str, built: Built, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "release"
    shutil.copytree(built.folder, folder)
    ggufs = {"F16": folder / built.ggufs["F16"].name}
    copy = dataclasses.replace(built, folder=folder, ggufs=ggufs)
    monkeypatch.setattr(programs, "ours", lambda *_: built.expected)
    FAULTS[fault](copy, monkeypatch)
    with pytest.raises(proof.ReleaseError, match="nothing was released"):
        prove(copy)


def reply(ids, likely, ended=False) -> ProgramReply:
    return ProgramReply([1], ids, ended, likely)


def test_only_a_near_tie_excuses_a_difference():
    ours = reply([4, 5, 6], [{4: -0.1}, {5: -1.0, 7: -1.15}, {6: -0.5}])
    found = proof.AnswerAgreement()
    found.add(ours, reply([4, 7, 9], [{4: -0.15}, {7: -1.05, 5: -1.1}, {9: -9.0}]), 0.1)
    assert (found.near_ties, found.different, found.tokens) == (1, 0, 2)
    assert found.largest_error == pytest.approx(0.1)
    found.add(ours, reply([4, 7], [{4: -0.1}, {5: -1.0, 7: -1.15}]), 0.05)
    assert (found.near_ties, found.different) == (1, 1)
    found.add(ours, reply([4, 5], [{4: -0.1}, {5: -1.0, 7: -1.15}], ended=True), 0.1)
    assert (found.near_ties, found.different) == (1, 2)
    found.add(ours, ours, 0.1)
    assert (found.equal, found.answers) == (1, 4)
