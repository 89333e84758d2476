"""Prints the results of a quickstart run, and writes the same text to its summary.md."""

import json
import sys
import textwrap
from pathlib import Path

SHOWN = 3
"""Test items whose answers are printed; the files hold all of them."""


def summary(directory: Path) -> str:
    """The results in `directory` as Markdown."""
    lines = (directory / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    losses = [step["eval_loss"] for step in steps if "eval_loss" in step]
    answers = {
        name: json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("before", "after")
    }
    stopped = {
        name: sum(record["finish_reason"] == "stop" for record in records)
        for name, records in answers.items()
    }
    total = len(answers["after"])
    seconds = sum(step["seconds"] for step in steps if "seconds" in step)
    text = [
        "# Quickstart: SmolLM2-135M before and after fine-tuning",
        "",
        "| | before | after |",
        "|---|---|---|",
        f"| held-out loss, nats a token | {losses[0]:.3f} | {losses[-1]:.3f} |",
        f"| answers that stop by themselves | {stopped['before']}/{total} | "
        f"{stopped['after']}/{total} |",
        "",
        f"Training took {len(steps) - 1} steps, {seconds:.0f} s. A model of this size knows little "
        "medicine: this shows the path, not quality. Never use its answers for care.",
    ]
    for before, after in list(zip(answers["before"], answers["after"], strict=True))[:SHOWN]:
        question = before["instruction"] + (f" [{before['input']}]" if before["input"] else "")
        text += ["", f"## {question}", ""]
        for name, record in (("before", before), ("after", after)):
            answer = " ".join(record["output"].split())
            text += [f"- **{name}**: {textwrap.shorten(answer, 400, placeholder=' ...')}"]
    text += [
        "",
        "## Files",
        "",
        f"- {directory}/base: the converted base model",
        f"- {directory}/run: checkpoints, metrics.jsonl, run.json of the fine-tuned model",
        f"- {directory}/before.json, {directory}/after.json: all answers, in alpaca_eval's format",
        f"- {directory}/summary.md: this text",
    ]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    report = summary(folder)
    (folder / "summary.md").write_text(report, encoding="utf-8")
    print(report)
