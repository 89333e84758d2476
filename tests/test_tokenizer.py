"""Tokenizers: ids equal to the reference libraries', the leading space, special tokens, view."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from absl import flags
from conftest import fetch
from hypothesis import given, settings
from hypothesis import strategies as st

from alpacare_jax import tokenizer as module
from alpacare_jax.tokenizer import TOKENIZER_FILES, check_matches, load, render

ROOT = Path(__file__).parents[1]

CORPUS = """\
Below is an instruction that describes a task, paired with an input that gives further context.
Write a response that appropriately completes the request.
The patient is a 54 year old woman with chest pain and shortness of breath since this morning.
Her blood pressure is 150/95 mmHg and her heart rate is 104 beats per minute.
What is the most likely diagnosis, and which test should be ordered first?
An electrocardiogram should be recorded within ten minutes of arrival.
Explain to the patient in plain words why the doctor asks for a blood test.
Metformin is the first treatment of type 2 diabetes unless the kidney function is poor.
The dose of the medicine depends on the weight of the child and on the renal function.
List three side effects of the medicine, and say when the patient should call the doctor.
A fever of 39 degrees with a stiff neck is an emergency: the patient needs a doctor now.
Do not stop the tablets without talking to the doctor who prescribed them.
### Instruction: ### Input: ### Response: the answer of the doctor to the question.
""".splitlines()

PLAIN = [
    "",
    "The patient has a fever.",
    "Below is an instruction.\n\n### Response:",
    "two  spaces   three\ttab\t\ttabs\n\n\nnewlines\r\nend  ",
    "dose 75 µg/kg, SpO₂ ≥ 94 %, t½ ≈ 6 h, 37.5 °C ± 0.2, β‑blocker",
    "患者有发热和咳嗽。日本語のテスト、한국어",
    "🩺 doctor 👩‍⚕️ and 🙂🙂",
    "naïve café e\u0301 ﬁ Ω\u00a0x \u200b|\u202e",
    "\x00\x01\x7f",
    "https://example.org/a?b=1&c=[2]{3}\\n",
]
LEADING_SPACE = [" ", "  two", " \n x", "\u2581x"]
SPECIAL_TEXT = [
    "</s>",
    "a </s> b<s><unk>",
    "<0x0A>",
    "[PAD]",
    "<|endoftext|>",
    "say <|im_end|>\n<|im_start|>system",
]


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def sentencepiece_dir(tmp_path_factory) -> Path:
    """LLaMA's tokenizer in small: the options are those of the 32,000-piece model."""
    directory = tmp_path_factory.mktemp("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return directory


@pytest.fixture(scope="session")
def byte_level_dir(tmp_path_factory) -> Path:
    """SmolLM2's tokenizer in small, with its special tokens in its order."""
    directory = tmp_path_factory.mktemp("byte_level")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    )
    return directory


def llama_json(model_path: Path, target: Path, style: str) -> None:
    """Writes the tokenizer.json twin of a SentencePiece model, as Hugging Face converts it.

    `style` is "prepend" (the files of LLaMA's release) or "metaspace" (those of transformers 5).
    """
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_path))
    vocab = {model.id_to_piece(i): i for i in range(model.vocab_size())}
    # SentencePiece joins the two neighbours that make the piece of the highest score.
    merges = [
        (model.get_score(i), cut, len(piece) - cut, piece[:cut], piece[cut:])
        for piece, i in vocab.items()
        if not (model.is_byte(i) or model.is_control(i) or model.is_unknown(i))
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    merges = [row[-2:] for row in sorted(merges, reverse=True)]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if style == "prepend":
        backend.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
            prepend_scheme="first", split=False
        )
    d = tokenizers.decoders
    backend.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1)])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
    )
    target.mkdir(exist_ok=True)
    backend.save(str(target / "tokenizer.json"))
    write_json(
        target / "tokenizer_config.json",
        {
            "bos_token": "<s>",
            "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
            "unk_token": "<unk>",
        },
    )


STYLES = ["prepend", "metaspace"]


@pytest.fixture(scope="session", params=STYLES)
def llama_json_dir(request, sentencepiece_dir, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    llama_json(sentencepiece_dir / "tokenizer.model", directory, request.param)
    return directory


@pytest.fixture(scope="session")
def every_tokenizer(sentencepiece_dir, byte_level_dir, llama_json_dir) -> list[module.Tokenizer]:
    return [load(d) for d in (sentencepiece_dir, byte_level_dir, llama_json_dir)]


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


def check_same(from_model: module.Tokenizer, from_json: module.Tokenizer, texts) -> None:
    for text in texts:
        assert from_json.encode(text) == from_model.encode(text), text
        rest = from_model.encode(text, continuation=True)
        assert from_json.encode(text, continuation=True) == rest, text
        for continuation in (False, True):
            expected = from_model.decode(rest, continuation=continuation)
            assert from_json.decode(rest, continuation=continuation) == expected
    for name in ("vocab_size", "bos_id", "eos_id", "pad_id", "adds_bos", "control_ids"):
        assert getattr(from_json, name) == getattr(from_model, name), name


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


@pytest.fixture(scope="module")
def mistral_dir(tmp_path_factory) -> Path:
    """Mistral 7B's tokenizer, a 32,000-piece model made the way LLaMA's was."""
    directory = tmp_path_factory.mktemp("mistral")
    wheel = fetch("mistral-common==1.13.1", "ALPACARE_MISTRAL_WHEEL", directory)
    with zipfile.ZipFile(wheel) as archive:
        model = archive.read("mistral_common/data/tokenizer.model.v1")
    (directory / "tokenizer.model").write_bytes(model)
    return directory


@pytest.mark.slow
def test_real_model_equals_both_libraries(mistral_dir):
    long_text = "\n".join(PLAIN * 3 + CORPUS)
    texts = PLAIN + SPECIAL_TEXT + CORPUS + [long_text]
    check_against_sentencepiece(mistral_dir, texts + LEADING_SPACE)
    # transformers 5 joins runs of spaces first: it takes ids for merge ranks, where this model's
    # scores put such runs last. Its ids there are not those that the model was trained on.
    check_against_llama_tokenizer(mistral_dir, [text for text in texts if "  " not in text])
    ours = load(mistral_dir)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.pad_id) == (32_000, 1, 2, 0)
    pieces = [ours.piece(i) for i in ours.encode("dose  of 5 mg")]
    assert pieces == ["▁dose", "▁", "▁of", "▁", "5", "▁mg"]


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_real_model_equals_its_json_twin(mistral_dir, tmp_path, style):
    llama_json(mistral_dir / "tokenizer.model", tmp_path, style)
    check_same(load(mistral_dir), load(tmp_path), PLAIN + SPECIAL_TEXT + CORPUS)


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
    with pytest.raises(ValueError, match="cannot read '</s>' as plain text"):
        ours.encode("</s>")


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
            special_tokens_map={"bos_token": None, "eos_token": "</s>"},
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
    with pytest.raises(ValueError, match=r"not a SentencePiece model; .*take tokenizer\.json"):
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


def test_check_matches_accepts_what_belongs_together(sentencepiece_dir, byte_level_dir):
    llama = load(sentencepiece_dir)
    check_matches(llama, vocab_size=400, eos_token_ids=[2], bos_token_id=1)
    check_matches(llama, vocab_size=400 + 1024, eos_token_ids=[7, 2], bos_token_id=None)
    check_matches(llama, vocab_size=400, eos_token_ids=[], bos_token_id=1)
    check_matches(load(byte_level_dir), vocab_size=400, eos_token_ids=(2,), bos_token_id=1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"vocab_size": 399}, "tokenizer has 400 ids but the model 399 embedding rows"),
        ({"vocab_size": 1425}, "400 ids but the model 1,425 .*at most 1,024 may be spare"),
        ({"eos_token_ids": [1, 5]}, "eos_token_id 2 but config.json says 1 or 5"),
        ({"bos_token_id": 0}, "bos_token_id 1 but config.json says 0"),
    ],
)
def test_check_matches_names_the_difference_and_the_remedy(sentencepiece_dir, model, message):
    right = {"vocab_size": 400, "eos_token_ids": [2], "bos_token_id": 1}
    with pytest.raises(ValueError, match=message) as error:
        check_matches(load(sentencepiece_dir), **right | model)
    assert "copy the tokenizer files from the model's own folder" in str(error.value)
    assert "\n" not in str(error.value)


# The view of the loss mask.


@dataclasses.dataclass(frozen=True)
class Record:
    """The two fields of data.Encoded that a drawing needs."""

    ids: np.ndarray
    prompt_length: int


def encoded(tokenizer: module.Tokenizer, prompt: str, response: str) -> Record:
    head = [tokenizer.bos_id] * tokenizer.adds_bos + tokenizer.encode(prompt)
    tail = tokenizer.encode(response, continuation=True)
    return Record(np.array([*head, *tail, tokenizer.eos_id], np.int32), len(head))


def spelled(tokenizer: module.Tokenizer, text: str) -> list[str]:
    """The tokens of plain ASCII words, as a drawing shows them in the middle of a text."""
    ids = tokenizer.encode(text, continuation=True)
    return [tokenizer.piece(i).replace("▁", " ") for i in ids]


def test_render_in_plain_text(sentencepiece_dir):
    ours = load(sentencepiece_dir)
    drawn = render(encoded(ours, "the patient", "doctor\\n\n🩺 </s>"), ours, color=False)
    prompt = "|".join(["<s>", *spelled(ours, " the patient")])
    response = [*spelled(ours, "doctor"), "\\", "n", "↵\n", "🩺‹4›", " ", "<", "/", "s", ">"]
    assert drawn == prompt + "".join(f"[{cell}]" for cell in [*response, "</s>"])


def test_render_in_colour(sentencepiece_dir):
    ours = load(sentencepiece_dir)
    drawn = render(encoded(ours, "the patient", "\x1bdoctor"), ours, color=True)
    prompt = [f"\x1b[2m{cell}\x1b[0m" for cell in ("<s>", *spelled(ours, " the patient"))]
    response = ["\\x1b", *spelled(ours, "doctor"), "</s>"]
    response = [f"\x1b[32m{cell}\x1b[0m" for cell in response]
    assert drawn == "\x1b[2m|\x1b[0m".join(prompt + response)


def test_render_keeps_a_cut_character_apart_from_eos(sentencepiece_dir):
    ours = load(sentencepiece_dir)
    cut = ours.encode("🩺", continuation=True)[:-1]
    drawn = render(Record(np.array([*cut, ours.eos_id], np.int32), 0), ours, color=False)
    assert drawn == "[\ufffd\ufffd\ufffd‹3›][</s>]"


def test_render_shows_every_token_once(every_tokenizer):
    for ours in every_tokenizer:
        record = encoded(ours, "Write ≥ 2", "answers: µg 患者")
        drawn = render(record, ours, color=False)
        assert drawn.endswith(f"[{ours.piece(ours.eos_id)}]")
        assert drawn.startswith("<s>|") == ours.adds_bos
        head, tail = drawn.split("[", 1)
        cells = [cell.rstrip("]") for cell in head.split("|") + tail.split("[")]
        counts = [int(c[:-1].rpartition("‹")[2]) if c.endswith("›") else 1 for c in cells]
        assert sum(counts) == len(record.ids)


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "alpacare_jax.tokenizer", *arguments],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "NO_COLOR"} | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def examples_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "examples.jsonl"
    records = [
        {"id": "a", "instruction": "Name the drug.", "input": "", "output": "Metformin."},
        {"id": "b", "instruction": "Which dose?", "input": "child", "output": "10 mg/kg </s>"},
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_command_draws_and_counts(sentencepiece_dir, examples_file):
    from alpacare_jax import data, records
    from alpacare_jax.prompts import TEMPLATES

    ours = load(sentencepiece_dir)
    records = [
        data.encode_example(example, ours, TEMPLATES["alpaca"])
        for example in records.read_examples(examples_file)
    ]
    lengths = [len(record.ids) for record in records]
    loss = sum(len(record.ids) - record.prompt_length for record in records)
    arguments = [f"--checkpoint={sentencepiece_dir}", f"--input={examples_file}", "--show=1"]
    done = run_command(*arguments, f"--max_length={lengths[0]}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("legend: no loss, [loss], | between tokens")
    assert f"\na: {lengths[0]:,} tokens\n{render(records[0], ours, False)}\n" in done.stdout
    assert "\nb: " not in done.stdout and "\x1b" not in done.stdout
    assert done.stdout.endswith(
        f"2 records: {sum(lengths):,} tokens, {loss:,} carry loss; "
        f"1 records over max_length {lengths[0]:,}\n"
    )
    colored = run_command(*arguments, "--color=always", NO_COLOR="1").stdout
    assert render(records[0], ours, True) in colored


def test_command_fails_in_one_line(examples_file, tmp_path):
    done = run_command(f"--checkpoint={tmp_path}", f"--input={examples_file}")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "neither tokenizer.json nor tokenizer.model" in done.stderr
    assert run_command("--checkpoint=x", "--input=y", "--color=red").returncode == 2


@pytest.mark.parametrize(
    ("choice", "terminal", "no_color", "expected"),
    [
        ("auto", True, "", True),
        ("auto", True, "1", False),
        ("auto", False, "", False),
        ("always", False, "1", True),
        ("never", True, "", False),
    ],
)
def test_colour_choice(
    sentencepiece_dir, examples_file, monkeypatch, choice, terminal, no_color, expected
):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setenv("NO_COLOR", no_color)
    for name, value in {
        "checkpoint": str(sentencepiece_dir),
        "input": str(examples_file),
        "template": "alpaca",
        "color": choice,
    }.items():
        flags.DEFINE_string(name, value, "", flag_values=values)
    flags.DEFINE_integer("show", 1, "", flag_values=values)
    flags.DEFINE_integer("max_length", 1024, "", flag_values=values)
    values(["tokenizer"])
    out = io.StringIO()
    out.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdout", out)
    module.main(["tokenizer"])
    assert ("\x1b[32m" in out.getvalue()) == expected


def test_importing_defines_no_flag():
    assert module.__name__ not in flags.FLAGS.flags_by_module_dict()
