"""Tokenizers: ids equal to the reference libraries', the leading space, special tokens, view."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from alpacare_jax.checkpoints.model_folder import check_matches
from alpacare_jax.data import tokenizers as module
from alpacare_jax.data.tokenizers import TOKENIZER_FILES, load
from alpacare_jax.model.config import VARIANTS
from tests.alpacare_jax.conftest import (
    CORPUS,
    LEADING_SPACE,
    PLAIN,
    SPECIAL_TEXT,
    check_same,
    read_json,
    write_json,
)


def changed(source: Path, target: Path, **files) -> Path:
    """Copies a model folder and writes JSON files into the copy: name without ending -> value."""
    shutil.copytree(source, target)
    for name, value in files.items():
        write_json(target / f"{name}.json", value)
    return target


# Ids and text equal the reference libraries'.


def check_against_llama_tokenizer(directory: Path, texts: list[str]) -> None:
    """Compares ids and text with transformers' LlamaTokenizer, read from the same .model file."""
    transformers = pytest.importorskip("transformers", reason="parity with transformers")
    theirs = transformers.LlamaTokenizer.from_pretrained(str(directory))
    ours = load(directory)
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=True), text
        assert ours.decode(ids) == theirs.decode(ids) == text
        # transformers leaves the leading space out right after a special token.
        after_bos = theirs.encode("<s>" + text, add_special_tokens=False)
        if text not in SPECIAL_TEXT:
            assert [ours.bos_id, *ours.encode(text, continuation=True)] == after_bos, text


def test_sentencepiece_equals_transformers(sentencepiece_dir):
    check_against_llama_tokenizer(sentencepiece_dir, PLAIN + SPECIAL_TEXT + CORPUS)


def check_against_sentencepiece(directory: Path, texts: list[str]) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    ours = load(directory)
    earlier = model.encode("\n")
    for text in texts:
        assert ours.encode(text) == model.encode(text)
        assert ours.decode(ours.encode(text)) == text.replace("▁", " ")
        # No piece joins a newline with what follows it, so "\n" can be the earlier text.
        assert earlier + ours.encode(text, continuation=True) == model.encode("\n" + text)


def test_sentencepiece_equals_the_library(sentencepiece_dir):
    check_against_sentencepiece(sentencepiece_dir, PLAIN + LEADING_SPACE + SPECIAL_TEXT)


def test_leading_space_rule(sentencepiece_dir):
    ours = load(sentencepiece_dir)
    assert [ours.piece(i) for i in ours.encode("the")] == ["▁the"]
    assert [ours.piece(i) for i in ours.encode("the", continuation=True)] == ["t", "he"]
    assert ours.encode(" the", continuation=True) == ours.encode("the")
    assert ours.decode(ours.encode("the")) == "the"
    assert ours.decode(ours.encode("the"), continuation=True) == " the"


def test_llama_json_equals_the_model_file(sentencepiece_dir, llama_json_dir):
    texts = PLAIN + SPECIAL_TEXT + CORPUS
    check_same(load(sentencepiece_dir), load(llama_json_dir), texts)


def test_byte_level_equals_tokenizers(byte_level_dir):
    backend = tokenizers.Tokenizer.from_file(str(byte_level_dir / "tokenizer.json"))
    ours = load(byte_level_dir)
    for text in PLAIN + LEADING_SPACE + CORPUS:
        ids = ours.encode(text)
        assert ids == backend.encode(text).ids == ours.encode(text, continuation=True)
        assert ours.decode(ids) == text


def check_against_auto_tokenizer(directory: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="parity with transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(directory))
    ours = load(directory)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.adds_bos == (theirs.encode("fever")[0] == ours.bos_id)
    for text in PLAIN + LEADING_SPACE + SPECIAL_TEXT:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.decode([*ids, ours.eos_id]) == theirs.decode(ids)


def test_byte_level_equals_auto_tokenizer(byte_level_dir):
    check_against_auto_tokenizer(byte_level_dir)


def test_llama_json_equals_auto_tokenizer(llama_json_dir):
    check_against_auto_tokenizer(llama_json_dir)


# Text and control ids.


def test_text_never_becomes_a_control_id(every_tokenizer):
    for ours in every_tokenizer:
        for text in SPECIAL_TEXT:
            for continuation in (False, True):
                ids = ours.encode(text, continuation=continuation)
                assert not ours.control_ids.intersection(ids)
                assert ours.decode(ids, continuation=continuation) == text


def test_a_declared_special_token_needs_no_special_mark(byte_level_dir, tmp_path):
    spec = read_json(byte_level_dir / "tokenizer.json")
    for token in spec["added_tokens"]:
        token["special"] = False
    ours = load(changed(byte_level_dir, tmp_path / "unmarked", tokenizer=spec))
    assert ours.eos_id not in ours.encode("<|im_end|>")
    assert ours.decode([ours.eos_id]) == ""


def test_a_tokenizer_that_cannot_read_a_control_token_as_text_raises(tmp_path):
    """`ignore_merges` looks up whole words first, control tokens among them."""
    vocab = {"<unk>": 0, "</s>": 1, "a": 2}
    model = tokenizers.models.BPE(vocab, [], unk_token="<unk>", ignore_merges=True)
    backend = tokenizers.Tokenizer(model)
    backend.add_special_tokens(["<unk>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "</s>", "unk_token": "<unk>"})
    ours = load(tmp_path)
    assert ours.encode("ab") == [2, 0]  # the unknown token is no leak
    with pytest.raises(ValueError, match="cannot encode '</s>' as plain text"):
        ours.encode("</s>")


def test_a_text_is_not_lost(tmp_path):
    """Without an unknown token the library leaves out what it cannot spell."""
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "</s>"})

    def spelling(*letters: str):
        vocab = {letter: number for number, letter in enumerate(("</s>", *letters))}
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
        backend.add_special_tokens(["</s>"])
        backend.save(str(tmp_path / "tokenizer.json"))
        return load(tmp_path)

    with pytest.raises(ValueError, match=r"tokenizer\.json turns text into no tokens at all; copy"):
        spelling("患")
    ours = spelling("a")
    assert (ours.encode("a"), ours.encode(""), ours.encode(" ")) == ([1], [], [])
    with pytest.raises(ValueError, match="has no token for anything in '患者'; use the one"):
        ours.encode("患者")


def test_decode_skips_what_is_not_text(every_tokenizer):
    for ours in every_tokenizer:
        ids = ours.encode("a fever")
        noisy = [ours.bos_id, *ids, ours.eos_id, *sorted(ours.control_ids), ours.vocab_size + 7]
        assert ours.decode(noisy) == "a fever"
        assert ours.decode(np.array(ids, np.int32)) == "a fever"
        assert ours.decode([]) == ""


def test_half_a_character_decodes_to_the_replacement_character(every_tokenizer):
    for ours in every_tokenizer:
        assert "\ufffd" in ours.decode(ours.encode("🩺")[:-1])


def test_half_a_surrogate_pair_is_an_error_of_the_text(every_tokenizer):
    for ours in every_tokenizer:
        with pytest.raises(ValueError, match="surrogates not allowed"):
            ours.encode("fever \ud83d")


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40)
PIECES = st.lists(st.sampled_from(CORPUS[:3] + PLAIN + SPECIAL_TEXT) | TEXT, max_size=4)


@settings(max_examples=60, deadline=None)
@given(prompt=PIECES.map("".join), response=PIECES.map(" ".join))
def test_prompt_and_response_join_to_the_text(every_tokenizer, prompt, response):
    for ours in every_tokenizer:
        # transformers' Metaspace drops a space at the very start of a text.
        prompt = prompt.lstrip(" ")
        ids = ours.encode(prompt) + ours.encode(response, continuation=True)
        assert ours.decode(ids, continuation=not prompt) == prompt + response
        alone = ours.decode(ours.encode(response, continuation=True), continuation=True)
        assert alone == response
        assert all(0 <= i < ours.vocab_size for i in ids)


# Special tokens are found where models declare them.


@pytest.mark.parametrize(
    ("declared", "pad"),
    [
        ({"eos_token": "<|im_end|>", "pad_token": "<|im_start|>"}, 1),
        ({"eos_token": "<|im_end|>", "pad_token": {"content": "<|im_start|>"}}, 1),
        ({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|im_start|>"}, 1),
        ({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "bos_token": "<|im_start|>"}, 1),
        ({"eos_token": "<|im_end|>", "pad_token": "[missing]"}, 0),
        ({"eos_token": "<|im_end|>", "bos_token": "<|im_end|>", "unk_token": "<|im_end|>"}, 0),
        ({"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, 1),
    ],
)
def test_pad_is_never_eos(byte_level_dir, tmp_path, declared, pad):
    ours = load(changed(byte_level_dir, tmp_path / "model", tokenizer_config=declared))
    assert ours.pad_id == pad != ours.eos_id


def test_pad_of_a_model_file_is_unk_even_when_eos_is_declared(sentencepiece_dir, tmp_path):
    assert load(sentencepiece_dir).pad_id == 0
    declared = {"pad_token": "</s>"}
    ours = load(changed(sentencepiece_dir, tmp_path / "model", tokenizer_config=declared))
    assert (ours.pad_id, ours.eos_id) == (0, 2)


def test_a_pad_id_that_is_an_ordinary_token_keeps_its_text(byte_level_dir, tmp_path):
    spec = read_json(byte_level_dir / "tokenizer.json")
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["id"] == 2]
    ours = load(
        changed(
            byte_level_dir,
            tmp_path / "model",
            tokenizer=spec,
            tokenizer_config={"eos_token": "<|im_end|>"},
        )
    )
    assert ours.pad_id == 0 and 0 not in ours.control_ids and ours.bos_id is None
    assert ours.decode([0]) == "<|endoftext|>"


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": {"[PAD]": 400}, "special_tokens_map": {"pad_token": "[PAD]"}},
        {
            "tokenizer_config": {
                "pad_token": {"content": "[PAD]"},
                "added_tokens_decoder": {"2": {"content": "</s>"}, "400": {"content": "[PAD]"}},
            }
        },
    ],
)
def test_alpacas_added_pad_token(sentencepiece_dir, tmp_path, files):
    ours = load(changed(sentencepiece_dir, tmp_path / "alpaca", **files))
    assert (ours.vocab_size, ours.pad_id, ours.bos_id, ours.eos_id) == (401, 400, 1, 2)
    assert ours.piece(400) == "[PAD]"
    assert ours.decode([400, *ours.encode("fever [PAD]"), 400]) == "fever [PAD]"


def test_declared_tokens_win_and_empty_strings_declare_nothing(sentencepiece_dir, tmp_path):
    chatml = {"<|im_start|>": 400, "<|im_end|>": 401}
    ours = load(
        changed(
            sentencepiece_dir,
            tmp_path / "chatml",
            tokenizer_config={"bos_token": "", "eos_token": {"content": "<|im_end|>"}},
            special_tokens_map={"bos_token": None, "eos_token": ""},
            added_tokens=chatml,
        )
    )
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.vocab_size) == (1, 401, 0, 402)
    assert ours.decode([1, 400, 401]) == ""


@pytest.mark.parametrize("config", [{}, {"add_bos_token": None}, {"add_bos_token": True}])
def test_llama_puts_bos_before_a_prompt(sentencepiece_dir, llama_json_dir, tmp_path, config):
    assert load(changed(sentencepiece_dir, tmp_path / "a", tokenizer_config=config)).adds_bos
    names = read_json(llama_json_dir / "tokenizer_config.json")
    assert load(changed(llama_json_dir, tmp_path / "b", tokenizer_config=names | config)).adds_bos


def test_bos_before_a_prompt_can_be_switched(
    sentencepiece_dir, llama_json_dir, byte_level_dir, tmp_path
):
    without = {"add_bos_token": False, "bos_token": "<s>", "eos_token": "</s>"}
    for name, source in (("a", sentencepiece_dir), ("b", llama_json_dir)):
        assert load(changed(source, tmp_path / name, tokenizer_config=without)).adds_bos is False
    names = read_json(byte_level_dir / "tokenizer_config.json")
    config = names | {"add_bos_token": True}
    assert load(byte_level_dir).adds_bos is False
    assert load(changed(byte_level_dir, tmp_path / "c", tokenizer_config=config)).adds_bos is True
    config["bos_token"] = None
    assert load(changed(byte_level_dir, tmp_path / "d", tokenizer_config=config)).adds_bos is False


def test_saved_truncation_and_padding_do_not_touch_text(byte_level_dir, tmp_path):
    backend = tokenizers.Tokenizer.from_file(str(byte_level_dir / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    ours = load(changed(byte_level_dir, tmp_path / "model", tokenizer=json.loads(backend.to_str())))
    assert ours.encode(CORPUS[0]) == load(byte_level_dir).encode(CORPUS[0])
    assert ours.encode("") == []


# Loading and matching.


def test_load_prefers_json_and_needs_just_one_file(sentencepiece_dir, llama_json_dir, tmp_path):
    assert isinstance(load(str(sentencepiece_dir)), module.SentencePieceTokenizer)
    both = changed(llama_json_dir, tmp_path / "both")
    shutil.copy(sentencepiece_dir / "tokenizer.model", both)
    assert isinstance(load(both), module.HuggingFaceTokenizer)


def test_load_names_both_files_when_there_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        load(tmp_path)


def test_load_explains_what_it_cannot_use(byte_level_dir, tmp_path):
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(ValueError, match=r"not a SentencePiece model; .*use tokenizer\.json"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="Expecting property name"):
        load(tmp_path)
    nameless = changed(byte_level_dir, tmp_path / "nameless", tokenizer_config={})
    with pytest.raises(ValueError, match=r"eos_token None is not .*tokenizer_config\.json"):
        load(nameless)
    unknown = {"eos_token": "<|im_end|>", "bos_token": "<s>"}
    wrong = changed(byte_level_dir, tmp_path / "wrong", tokenizer_config=unknown)
    with pytest.raises(ValueError, match="bos_token '<s>' is not in the vocabulary"):
        load(wrong)


def test_the_files_carried_along_make_the_same_tokenizer(sentencepiece_dir, tmp_path):
    complete = changed(
        sentencepiece_dir,
        tmp_path / "complete",
        tokenizer_config={"add_bos_token": False},
        special_tokens_map={"pad_token": "[PAD]"},
        added_tokens={"[PAD]": 400},
    )
    carried = tmp_path / "carried"
    carried.mkdir()
    for name in TOKENIZER_FILES:
        if (complete / name).exists():
            shutil.copy(complete / name, carried)
    ours, theirs = load(carried), load(complete)
    for name in ("vocab_size", "bos_id", "eos_id", "pad_id", "adds_bos", "control_ids"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.pad_id == 400


RIGHT = dataclasses.replace(VARIANTS["tiny"], vocab_size=400, eos_token_ids=(2,), bos_token_id=1)


def test_check_matches_accepts_what_belongs_together(sentencepiece_dir, byte_level_dir):
    llama = load(sentencepiece_dir)
    check_matches(llama, RIGHT)
    wider = {"vocab_size": 400 + 1024, "eos_token_ids": (7, 2), "bos_token_id": None}
    check_matches(llama, dataclasses.replace(RIGHT, **wider))
    check_matches(llama, dataclasses.replace(RIGHT, eos_token_ids=()))
    check_matches(load(byte_level_dir), RIGHT)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"vocab_size": 399}, "tokenizer has 400 ids but the model 399 embedding rows: id 399 "),
        ({"vocab_size": 16_785}, "400 ids but the model 16,785 .*at most 16,384 may be unused"),
        ({"eos_token_ids": [1, 5]}, "eos_token_id 2 but config.json has 1 or 5"),
        ({"bos_token_id": 0}, "bos_token_id 1 but config.json has 0"),
    ],
)
def test_check_matches_names_the_difference_and_the_remedy(sentencepiece_dir, model, message):
    with pytest.raises(ValueError, match=message) as error:
        check_matches(load(sentencepiece_dir), dataclasses.replace(RIGHT, **model))
    assert "copy the tokenizer files from the model's folder" in str(error.value)
    assert "\n" not in str(error.value)
