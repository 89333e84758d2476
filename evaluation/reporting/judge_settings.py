"""How the verdicts of a report were made: what each workdir's run.json says, and the prompts."""

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from common import provenance
from common.reports.page import foldout, table
from evaluation.judgements.foreign import ForeignJudgements
from evaluation.judging.judges import JUDGES, Judge

CHAT_SETTINGS = (
    *("provider", "model", "max_tokens", "temperature", "top_p", "presence_penalty"),
    *("reasoning_effort", "extra_body", "batch"),
)
"""Of a run's config.chat, what can change a verdict."""


@dataclasses.dataclass(frozen=True)
class JudgeRun:
    """How the judgements of one source were made."""

    source: str
    settings: Mapping[str, str]
    prompts: Mapping[str, str]  # version -> text, "" where it is unknown


def read(sources: Sequence[str | Path | ForeignJudgements]) -> list[JudgeRun]:
    """What is known of each source.

    Raises:
      ValueError: a run.json is damaged.
    """
    shipped = {}
    for name, spec in JUDGES.items():
        if spec.prompt:
            judge = Judge.load(name)
            shipped[judge.version] = dataclasses.asdict(judge.prompt)
    return [_run(source, shipped) for source in sources]


def _run(source: str | Path | ForeignJudgements, shipped: Mapping[str, dict]) -> JudgeRun:
    if isinstance(source, ForeignJudgements):
        return JudgeRun(source.path.name, {"made by": "another tool; its settings are unknown"}, {})
    path = Path(source) / "run.json"
    name = Path(source).resolve().name
    if not path.exists():
        return JudgeRun(name, {"run.json": "missing: nothing is known of its settings"}, {})
    record = provenance.read_json(path)
    config = record.get("config") or {}
    chat = config.get("chat") or {}
    packages = record.get("packages") or {}
    sdk = {"openai", "anthropic"} & packages.keys()
    settings = {
        "benchmark": record.get("benchmark"),
        **{
            key: "not sent" if chat[key] is None else chat[key]
            for key in CHAT_SETTINGS
            if key in chat
        },
        "reasks": config.get("reasks"),
        "judged on": str(record.get("end") or "")[:10],  # a rerun, hours later, gives the same page
        "code": record.get("git_commit"),
        "python": record.get("python"),
        **{package: packages[package] for package in sorted(sdk) if packages[package]},
    }
    recorded = record.get("prompts") or {}
    prompts = {}
    for version in (record.get("prompt_versions") or {}).values():
        found = recorded.get(version) or shipped.get(version) or {}
        prompts[version] = _text(found)
    known = {key: str(value) for key, value in settings.items() if value not in (None, "")}
    return JudgeRun(name, known, prompts)


def _text(prompt: Mapping[str, str]) -> str:
    parts = [f"[{part}]\n{prompt[part]}" for part in ("system", "user") if prompt.get(part)]
    return "\n\n".join(parts)


def html(runs: Sequence[JudgeRun]) -> str:
    """A table of the settings, a column for each source, and every prompt."""
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    rows = [(key, [run.settings.get(key, "–") for run in runs]) for key in keys]
    prompts = {version: text for run in runs for version, text in run.prompts.items()}
    shown = [
        foldout(
            f"<pre>{escape(text or 'Its text was not recorded, and is not one of this version.')}"
            "</pre>",
            f"Prompt {version}",
        )
        for version, text in prompts.items()
    ]
    return table(["Setting", *(run.source for run in runs)], rows) + "".join(shown)
