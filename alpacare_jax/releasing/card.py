"""The model card: README.md of a release, with the metadata that the Hugging Face Hub reads."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alpacare_jax.releasing.proof import TOLERANCES, AnswerAgreement
from alpacare_jax.reporting.run_files import RunFiles
from common import sections

RECIPE = (
    *("data.template", "data.loss", "data.max_length", "optimizer.name"),
    *("optimizer.learning_rate", "optimizer.schedule", "optimizer.warmup_ratio"),
    *("optimizer.weight_decay", "optimizer.max_grad_norm", "train.epochs", "train.batch_size"),
    *("train.seed", "lora.rank", "lora.alpha", "lora.targets"),
)
"""Keys of the config that a card shows, where a run has them."""

TABLES = (
    *(f"tables/{name}.md" for name in ("win_rates", "corrected", "people_rates", "accuracy")),
    "rubric.md",
)
"""What a card shows of the folders of `report`, `choices` and `rubric`."""

LIMITS = """\
For research on instruction tuning in medicine. It is **not a medical device** and gives no medical
advice: its answers can be wrong, out of date or dangerous while they read well, and were not
checked by clinicians unless a table above shows labels by people. Do not use it to diagnose, to
treat, to dose, to triage or in an emergency, and do not show its answers to patients without review
by a clinician. Win rates are preferences of a judge between two answers, not rates of correct ones.
It can reproduce errors and biases of its base model and of its data. It is as good in a language as
these are."""


@dataclasses.dataclass(frozen=True)
class Names:
    """What only the people who release a model know."""

    repo: str  # USER/NAME on the Hub
    licence: str  # the Hub's identifier
    licence_name: str  # of licence "other"
    licence_link: str
    base_model: str
    dataset: str  # USER/NAME on the Hub, or words
    language: str

    @property
    def name(self) -> str:
        """The model's own part of `repo`."""
        return self.repo.rpartition("/")[2]


def metadata(names: Names) -> Any:
    """The card's metadata, a huggingface_hub.ModelCardData."""
    from huggingface_hub import ModelCardData

    return ModelCardData(
        license=names.licence,
        license_name=names.licence_name or None,
        license_link=names.licence_link or None,
        base_model=names.base_model,
        datasets=[names.dataset] if on_hub(names.dataset) else None,
        language=names.language or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["alpacare-jax", "instruction-tuning", "gguf"],
    )


def on_hub(name: str) -> bool:
    """Whether a name is of the form USER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def text(
    names: Names,
    run: RunFiles,
    ggufs: Sequence[str],
    agreements: Mapping[str, AnswerAgreement],
    dtype: str,
    tables: Sequence[str],
    limits: str,
) -> str:
    """The whole card."""
    parts = [
        f"---\n{metadata(names).to_yaml().strip()}\n---",
        f"# {names.name}",
        f"Fine-tuned from [{names.base_model}](https://huggingface.co/{names.base_model}) on "
        f"{_linked(names.dataset)} with alpacare-jax.",
        "## Use",
        _use(names, ggufs),
        "## Training",
        _training(run),
        *(["## Evaluation", *tables] if tables else []),
        "## The same answers everywhere",
        _agreements(agreements, dtype),
        "## Intended use and limits",
        limits.strip(),
        "## Licence",
        f"[{names.licence_name}]({names.licence_link})" if names.licence_name else names.licence,
    ]
    return "\n\n".join(parts) + "\n"


def _linked(dataset: str) -> str:
    return f"[{dataset}](https://huggingface.co/datasets/{dataset})" if on_hub(dataset) else dataset


def _use(names: Names, ggufs: Sequence[str]) -> str:
    code = (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'name = "{names.repo}"\n'
        "tokenizer, model = AutoTokenizer.from_pretrained(name), "
        "AutoModelForCausalLM.from_pretrained(name)\n"
        'question = [{"role": "user", "content": "What is anaemia?"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    question, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
        ")\n"
        "answer = model.generate(**inputs, max_new_tokens=256, do_sample=False, "
        "tokenizer=tokenizer)\n"
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], '
        "skip_special_tokens=True))\n"
        "```\n\n"
        "It answers one question at a time, greedily, as it was evaluated."
    )
    if not ggufs:
        return code
    return (
        f"{code} In llama.cpp and in Ollama:\n\n```bash\n"
        f"hf download {names.repo} --local-dir {names.name}\n"
        f"llama-server -m {names.name}/{ggufs[0]} --temp 0\n"
        f"ollama create {names.name.lower()} -f {names.name}/Modelfile\n```"
    )


def _training(run: RunFiles) -> str:
    config = sections.flatten(run.record.get("config", {}))
    if not (rows := [(key, config[key]) for key in RECIPE if config.get(key) not in (None, "")]):
        return "The record of the training run is not beside these weights."
    if not config.get("lora.rank"):
        rows = [row for row in rows if not row[0].startswith("lora.")]
    lines = ["| setting | value |", "|---|---|", *(f"| `{key}` | {value} |" for key, value in rows)]
    steps = f"{run.last_step:,} steps"
    if run.best:
        step, loss = run.best
        before = next((y for x, y in run.curve("eval_loss") if not x), None)
        was = "" if before is None else f", {before:.4f} before training"
        steps += f"; held-out loss {loss:.4f} at step {step:,}{was}"
    return "\n".join([*lines, "", f"{steps[0].upper()}{steps[1:]}."])


def _agreements(agreements: Mapping[str, AnswerAgreement], dtype: str) -> str:
    lines = [
        f"Greedy answers of each program to the same questions, compared token by token with those "
        f"of the engine that evaluated the model, with the weights as released ({dtype}):",
        "",
        "| program | equal | near ties | others | largest error of a log-probability |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in agreements.items():
        shown = name if name not in ("F16", "Q8_0") else f"llama.cpp, {name}"
        others = found.different if name in TOLERANCES else f"{found.different} (8 bits)"
        lines.append(
            f"| {shown} | {found.equal} of {found.answers} | {found.near_ties} | {others} | "
            f"{found.largest_error:.2g} |"
        )
    lines += [
        "",
        "A near tie is a first difference where the two likeliest tokens are closer than twice the "
        f"tolerance ({', '.join(f'{name} {value:g}' for name, value in TOLERANCES.items())}). "
        "Programs add numbers in different orders; there either token may come next.",
    ]
    return "\n".join(lines)


def evaluation_tables(report: Path) -> list[str]:
    """The tables of a folder of `alpacare report`, `choices` or `rubric`, as Markdown.

    Raises:
      FileNotFoundError: it has none.
    """
    found = [report / name for name in TABLES if (report / name).is_file()]
    texts = [path.read_text(encoding="utf-8").strip() for path in found]
    if not texts:
        raise FileNotFoundError(
            f"{report} has none of {', '.join(TABLES)}; give what report, choices or rubric wrote"
        )
    return texts


def check_eval_results(path: Path) -> None:
    """Raises ValueError unless a file is of the Hub's form for `.eval_results`."""
    import yaml
    from huggingface_hub import EvalResultEntry

    try:
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
            dataset, source = entry["dataset"], entry.get("source") or {}
            EvalResultEntry(
                dataset_id=dataset["id"],
                task_id=dataset["task_id"],
                value=entry["value"],
                source_url=source.get("url"),
                source_name=source.get("name"),
            )
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a list of the Hub's evaluation results ({error})"
        ) from None
