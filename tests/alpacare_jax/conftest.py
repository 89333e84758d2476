"""Tokenizers of each kind, small training runs, and the reference libraries."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
import tokenizers

from alpacare_jax.data import tokenizers as module
from alpacare_jax.data.tokenizers import load
from alpacare_jax.inference import compiled
from tests.support.training import finished_run, make_corpus, stopped_run

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


def train_sentencepiece(folder: Path, kind: str, size: int) -> Path:
    """A model in `folder` with the options of LLaMA's, on a corpus too small for its 32,000."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type=kind,
        vocab_size=size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


@pytest.fixture(autouse=True, scope="session")
def few_programs():
    """Engines compile for whole chunks and all slots only; tests of other sizes set their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "ON_CPU", compiled.Sizes(256, 8, 16))
        yield


@pytest.fixture(scope="session")
def torch():
    torch = pytest.importorskip("torch", reason="torch is what the numbers are compared with")
    torch.set_num_threads(1)  # threads of a tiny model mostly wait for each other and for XLA's
    return torch


@pytest.fixture(scope="session")
def transformers(torch):
    return pytest.importorskip("transformers", reason="transformers' LLaMA is the reference")


@pytest.fixture(scope="session")
def sentencepiece_dir(tmp_path_factory) -> Path:
    """LLaMA's tokenizer in small: the options are those of the 32,000-piece model."""
    return train_sentencepiece(tmp_path_factory.mktemp("sentencepiece"), "bpe", 400)


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


def check_same(from_model: module.Tokenizer, from_json: module.Tokenizer, texts) -> None:
    """Checks that a tokenizer.json and the model that it was made of read texts alike."""
    for text in texts:
        assert from_json.encode(text) == from_model.encode(text), text
        rest = from_model.encode(text, continuation=True)
        assert from_json.encode(text, continuation=True) == rest, text
        for continuation in (False, True):
            expected = from_model.decode(rest, continuation=continuation)
            assert from_json.decode(rest, continuation=continuation) == expected
    for name in ("vocab_size", "bos_id", "eos_id", "pad_id", "adds_bos", "control_ids"):
        assert getattr(from_json, name) == getattr(from_model, name), name


@pytest.fixture(scope="session", params=STYLES)
def llama_json_dir(request, sentencepiece_dir, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    llama_json(sentencepiece_dir / "tokenizer.model", directory, request.param)
    return directory


@pytest.fixture(scope="session")
def every_tokenizer(sentencepiece_dir, byte_level_dir, llama_json_dir) -> list[module.Tokenizer]:
    return [load(d) for d in (sentencepiece_dir, byte_level_dir, llama_json_dir)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A tiny model and its examples."""
    return make_corpus(tmp_path_factory.getbasetemp() / "corpus")


@pytest.fixture(scope="module")
def finished(corpus, quickly_compiled) -> SimpleNamespace:
    """A whole run of 10 steps, and what was seen of it."""
    return finished_run(corpus)


@pytest.fixture(scope="module")
def stopped(corpus, quickly_compiled, tmp_path_factory) -> Path:
    """The workdir of a run that was stopped at step 4; copy it before resuming."""
    workdir = tmp_path_factory.mktemp("stopped")
    finished_run(corpus)  # compiles for all of them
    stopped_run(corpus, workdir, step=4)
    return workdir
