"""Other programs on the server: our own teacher and judge, lm-evaluation-harness, inspect_ai."""

import dataclasses
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import jax
import pytest
from etils import epath

from alpacare_jax.checkpoints.export import to_hf
from alpacare_jax.inference.loading import ModelSource
from alpacare_jax.inference.sampling import Sampling
from tests.conftest import LIMIT, REPOSITORY, WORDS, make_model
from tests.support.served import ServerThread

pytestmark = pytest.mark.usefixtures("quickly_compiled")

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""With a place for a system prompt, which teachers and judges send."""


def run(
    *command: str, folder: Path = REPOSITORY, **environment: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@pytest.fixture(scope="module")
def spacious(tiny, tmp_path_factory, quickly_compiled):
    """A model with 8,192 positions and a chat template: prompts of a teacher are long."""
    folder = tmp_path_factory.mktemp("spacious") / "tiny-judge"
    make_model(folder, dataclasses.replace(tiny, max_position_embeddings=8192))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = {"step": "best", "template": "chat", "max_length": 8192, "dtype": "float32"}
    source = ModelSource(epath.Path(folder), None, **settings)
    served = ServerThread(source, source.engine(jax.devices()[:1], 1, 2, Sampling()))
    yield served
    served.stop()


@pytest.mark.slow
def test_datagen_and_evaluation_ask_it(spacious, tmp_path):
    """What a model with random weights writes is no task. A bias makes the judge say A."""
    address = f"--config.{{}}.base_url={spacious.url}/v1"
    tasks = run(
        *(sys.executable, "-m", "datagen.tasks", "--config=configs/datagen.py"),
        *(f"--workdir={tmp_path / 'tasks'}", address.format("teacher")),
        *(f"--config.teacher.model={spacious.name}", "--config.teacher.max_tokens=20"),
        *("--config.tasks.num_tasks=2", "--config.teacher.concurrency=2"),
        OPENAI_API_KEY="none",
    )
    assert "no task" in tasks.stderr.lower() or "usable" in tasks.stderr, tasks.stderr
    tokenizer = spacious.model.tokenizer
    bias = {str(tokenizer.encode("A")[0]): 100, str(tokenizer.eos_id): 99}
    says_a = {"logit_bias": bias, "presence_penalty": 2, "temperature": 0}
    outputs = tmp_path / "outputs.json"
    references = tmp_path / "references.json"
    for path, text in ((outputs, "rest"), (references, "water")):
        row = {"instruction": "what is fever", "output": text, "generator": path.stem}
        path.write_text(json.dumps([row]))
    judge = run(
        *(sys.executable, "-m", "evaluation.judge", "--config=configs/evaluation.py"),
        *(f"--outputs=ours={outputs}", f"--references=theirs={references}"),
        *(f"--benchmark={outputs}", f"--workdir={tmp_path / 'judged'}", address.format("chat")),
        *(f"--config.chat.model={spacious.name}", "--config.chat.max_tokens=8"),
        f"--config.chat.extra_body={json.dumps(says_a)}",
        OPENAI_API_KEY="none",
    )
    assert judge.returncode == 0, judge.stderr
    lines = (tmp_path / "judged" / "judgements.jsonl").read_text().splitlines()
    verdicts = {row["order"]: row["verdict"] for row in map(json.loads, lines)}
    assert verdicts == {"model_first": "model", "reference_first": "reference"}


def environment(folder: Path, package: str, *, shares: bool = False) -> str:
    """Python of a new environment with a package; with `shares` it sees those of this one, too."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    if shares:
        (shared,) = {path for path in sys.path if path.endswith("site-packages")}
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "shared.pth").write_text(shared + "\n")
    done = run(python, "-m", "pip", "install", "--quiet", *package.split())
    if done.returncode:
        pytest.skip(f"no package index has {package}: {done.stderr[-200:]}")
    return python


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> str:
    """Python with lm-evaluation-harness and this environment's torch, or LM_EVAL_PYTHON."""
    return os.environ.get("LM_EVAL_PYTHON") or environment(
        tmp_path_factory.mktemp("harness"), "lm_eval[api]==0.4.13", shares=True
    )


EVALS = """\
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import choice, includes, model_graded_qa
from inspect_ai.solver import generate, multiple_choice, system_message

def saying(bias):
    return GenerateConfig(
        logit_bias=bias, presence_penalty=2, frequency_penalty=2, max_tokens=len(bias)
    )

@task
def chat():
    shown = GenerateConfig(max_tokens=12, logprobs=True, top_logprobs=2)
    solvers = [system_message("be brief"), generate()]
    return Task([Sample("what is fever")], solver=solvers, scorer=includes(), config=shown)

@task
def choices():
    rows = [Sample("why", choices=["rest", "water"], target="B")]
    return Task(rows, solver=multiple_choice(), scorer=choice(), config=saying({answer}))

@task
def graded():
    grader = get_model("{model}", config=saying({grade}))
    scorer, short = model_graded_qa(grade_pattern="(C)", model=grader), GenerateConfig(max_tokens=9)
    return Task([Sample("what is fever", target="heat")], scorer=scorer, config=short)
"""


@pytest.mark.slow
def test_inspect_ai_asks_and_grades(spacious, tmp_path):
    """A chat, a multiple choice and a graded answer; biases make the model say ANSWER:B, and C.

    INSPECT_PYTHON has inspect_ai.
    """
    python = os.environ.get("INSPECT_PYTHON") or environment(
        tmp_path / "env", "inspect_ai==0.3.285 openai"
    )
    tokenizer, model = spacious.model.tokenizer, f"openai-api/local/{spacious.name}"

    def order(text: str) -> dict[int, float]:
        ids = tokenizer.encode(text, continuation=True)
        return {token_id: 100 - place / 2 for place, token_id in enumerate(ids)}

    evals = EVALS.format(answer=order("ANSWER:B"), grade=order("C"), model=model)
    (tmp_path / "evals.py").write_text(evals)
    done = run(
        *(python, "-m", "inspect_ai", "eval", "evals.py", "--model", model),
        *("--temperature", "0", "--display", "plain"),
        *("--log-format", "json", "--log-dir", "logs"),
        folder=tmp_path,
        LOCAL_BASE_URL=f"{spacious.url}/v1",
        LOCAL_API_KEY="none",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    logs = [json.loads(path.read_text()) for path in (tmp_path / "logs").glob("*.json")]
    found = {log["eval"]["task"]: log["samples"][0] for log in logs}
    scored = ("choices", "choice"), ("graded", "model_graded_qa")
    assert {log["status"] for log in logs} == {"success"}
    assert [found[task]["scores"][scorer]["value"] for task, scorer in scored] == ["C", "C"]
    (choice,) = found["chat"]["output"]["choices"]
    messages = [{"role": "system", "content": "be brief"}]
    messages.append({"role": "user", "content": "what is fever"})
    (ours,) = (
        spacious.client()
        .chat.completions.create(
            model=spacious.name,
            messages=messages,
            temperature=0,
            max_tokens=12,
            logprobs=True,
        )
        .choices
    )
    assert choice["message"]["content"] == ours.message.content
    assert [x["logprob"] for x in choice["logprobs"]["content"]] == [
        x.logprob for x in ours.logprobs.content
    ]


def words(start: int, count: int) -> str:
    return " ".join(WORDS[(start + k) % len(WORDS)] for k in range(count))


def made_questions(path: Path, count: int) -> None:
    """Questions whose options differ in length; `label` is the position of the right one."""
    lines = [
        {
            "question": words(5 * i, 4 + i % 3),
            "choices": [words(i + 3 * j, 1 + (i + j) % 4) for j in range(4)],
            "label": i % 4,
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


TASK = """\
task: tiny_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{prompt}"
doc_to_target: label
doc_to_choice: {choices}
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""

TEXTS = "Question: {{question}}\\nAnswer:", "choices"
LETTERS = (
    "Question: {{question}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\n"
    "D. {{choices[3]}}\\nAnswer:",
    '["A", "B", "C", "D"]',
)
"""(doc_to_text, doc_to_choice) of the two ways to compare options."""


def harness_results(
    harness: str, folder: Path, data: Path, task: tuple[str, str], *model: str
) -> tuple[dict, list[list[float]]]:
    """(its results, the log-likelihoods of each question's options) of a model."""
    (folder / "task").mkdir(parents=True, exist_ok=True)
    prompt, options = task
    text = TASK.format(data=data, prompt=prompt, choices=options)
    (folder / "task" / "tiny.yaml").write_text(text)
    done = run(
        *(harness, "-m", "lm_eval", "--model", model[0], "--model_args", model[1]),
        *("--tasks", "tiny_choices", "--include_path", str(folder / "task")),
        *("--output_path", str(folder / "out"), "--log_samples", "--device", "cpu"),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_CACHE=str(folder / "cache"),
        OPENAI_API_KEY="none",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (folder / "out").rglob("results_*.json")
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"]["tiny_choices"], logprobs(rows)


@pytest.mark.slow
def test_lm_evaluation_harness_scores_as_its_own_model(served, harness, model_directory, tmp_path):
    """A multiple-choice task: local-completions on the server, hf on the exported weights."""
    release = tmp_path / "release" / "tiny-medic"
    to_hf(model_directory, release, step="best", dtype="float32")
    data = tmp_path / "data.jsonl"
    made_questions(data, 40)
    models = {
        "local-completions": completions_arguments(served, release),
        "hf": f"pretrained={release},dtype=float32",
    }
    found = [
        harness_results(harness, tmp_path / name, data, TEXTS, name, arguments)
        for name, arguments in models.items()
    ]
    (ours, our_samples), (theirs, their_samples) = found
    assert ours == theirs and 0 < ours["acc,none"] < 1
    for mine, other in zip(our_samples, their_samples, strict=True):
        assert mine == pytest.approx(other, abs=1e-4)


def completions_arguments(served: ServerThread, release: Path) -> str:
    address = f"base_url={served.url}/v1/completions,num_concurrent=4,max_length=512"
    return f"model={served.name},tokenizer={release},add_bos_token=True,{address}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), [("texts", TEXTS), ("letters", LETTERS)])
def test_choices_are_those_of_lm_evaluation_harness(
    served, harness, model_directory, tmp_path, name, task
):
    """200 questions of the same file through the same server: the same numbers to the digit."""
    release = tmp_path / "release" / "tiny-medic"
    to_hf(model_directory, release, step="best", dtype="float32")
    data = tmp_path / "data.jsonl"
    made_questions(data, 200)
    arguments = completions_arguments(served, release)
    theirs, samples = harness_results(
        harness, tmp_path / name, data, task, "local-completions", arguments
    )
    workdir = tmp_path / "ours"
    done = run(
        *(sys.executable, "-m", "evaluation.choices", f"--input={data}", f"--prompt={name}"),
        *(f"--base_url={served.url}/v1", f"--workdir={workdir}"),
        OPENAI_API_KEY="none",
    )
    assert done.returncode == 0, done.stderr
    ours = json.loads((workdir / "summary.json").read_text())
    assert ours["accuracy"]["rate"] == theirs["acc,none"]
    assert ours["norm"]["rate"] == theirs["acc_norm,none"]
    assert 0.1 < ours["accuracy"]["rate"] < 0.9
    lines = [json.loads(line) for line in (workdir / "choices.jsonl").read_text().splitlines()]
    assert [line["logprobs"] for line in lines] == samples


def logprobs(rows: list[dict]) -> list[list[float]]:
    """The log-likelihood of each choice of each question, in the order of the questions."""
    ordered = sorted(rows, key=lambda row: row["doc_id"])
    return [[float(response[0][0]) for response in row["resps"]] for row in ordered]
