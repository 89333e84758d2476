"""The whole quickstart, with a tiny random model in the small one's place, killed and resumed.

ALPACARE_QUICKSTART_KILLS=all kills it once in every stage; otherwise the models' own stages, which
the second run would do the same, are left out of it.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers, trainers

from alpacare_jax.model.config import VARIANTS
from common import provenance
from launch.lib.stage import digests
from launch.quickstart.plan import GGUF
from tests.conftest import COMPILES_QUICKLY, LIMIT, REPOSITORY, make_model

STAGES = (
    *("base", "tasks", "fill/pool", "dedup", "responses", "fill/train", "fill/test", "stats"),
    *("before", "train", "after", "judge", "report"),
)
KILLED = os.environ.get("ALPACARE_QUICKSTART_KILLS", "tasks,judge")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_stand_in(folder: Path) -> Path:
    """A random model whose prompts have about as many tokens as SmolLM2's."""
    shape = dataclasses.replace(VARIANTS["tiny"], vocab_size=2048, max_position_embeddings=1024)
    make_model(folder, shape)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    texts = sorted((REPOSITORY / "datagen/starter").glob("*.jsonl"))
    tokenizer.train([*map(str, texts)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False}
    names = {"bos_token": control[1], "eos_token": control[2], "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | names))
    return folder


def run(folder: Path, kill_in: str = "") -> str:
    """A run of the script's program in `folder`, killed where a stage begins; its output."""
    env = os.environ | COMPILES_QUICKLY | {"JAX_NUM_CPU_DEVICES": "1"}
    env.pop("OPENAI_API_KEY", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.quickstart", f"--workdir={folder}"],
        cwd=REPOSITORY,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown = []
    assert process.stdout
    for line in process.stdout:
        shown.append(line)
        if kill_in and line.startswith(f"quickstart: {kill_in}: "):
            process.send_signal(signal.SIGKILL)
    code = process.wait(LIMIT)
    assert code == (-signal.SIGKILL if kill_in else 0), "".join(shown)
    return "".join(shown)


def results(folder: Path) -> dict[str, object]:
    """What a run ends with, without times and paths."""
    read = {
        name: (folder / name).read_bytes()
        for name in ("data/pool.jsonl", "data/train.jsonl", "data/test.jsonl", "before.json")
    }
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    losses = [{k: v for k, v in json.loads(x).items() if "loss" in k} for x in lines]
    answers = json.loads((folder / "after.json").read_text())
    verdicts = (folder / "judged/judgements.jsonl").read_text().splitlines()
    judged = [{k: v for k, v in json.loads(x).items() if k != "reply"} for x in verdicts]
    return read | {"losses": losses, "answers": answers, "judged": judged}


@pytest.mark.slow
def test_killed_in_stages_and_started_again_it_ends_with_the_same(tmp_path):
    folder = tmp_path / "quickstart"
    write_stand_in(folder / "base")
    published = [*digests(epath.Path(REPOSITORY / GGUF))]  # where a quickstart ran in this clone
    provenance.write_json(folder / "base/run.json", {"end": "made here", "source": published})
    shown = run(folder)
    assert "proves the plumbing" in shown and shown.count(": not started\n") == len(STAGES) - 1
    for label in ("held-out loss, before and after", "verdicts that could be read: 0 of 18"):
        assert label in shown
    for link in ("data/stats.html", "../run/report.html", "evaluation/report.html"):
        assert (folder / "report" / link).exists()
        assert f'href="{link}"' in (folder / "report/index.html").read_text()
    again = run(folder)
    assert again.count(" is done\n") == len(STAGES) and "server" not in again

    whole = results(folder)
    modelled = ("run", "before.json", "after.json") if KILLED == "all" else ()
    for name in ("data", "judged", "report", *modelled):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for stage in STAGES[1:] if KILLED == "all" else KILLED.split(","):
        run(folder, stage)
    run(folder)
    assert results(folder) == whole
