"""Workdirs of training runs, written by hand."""

import json
from pathlib import Path

TIME = "2026-11-27T04:30:{:02}+00:00"


def write(folder: Path, steps: int = 20, planned: int = 20, rate: float = 1e-3, **changes) -> Path:
    """A run of `steps` of `planned` steps whose loss falls with the rate; with extra events."""
    folder.mkdir(parents=True)
    config = {
        "model": {"checkpoint": "models/base"},
        "optimizer": {"learning_rate": rate, "schedule": "cosine"},
        "train": {"epochs": 1, "log_every": changes.get("log_every", 10)},
    }
    record = {
        "config": config,
        "git_commit": "abc",
        "packages": {"jax": "0.10.2", "openai": None},
        "host": "a-host-of-ours",
        "end": TIME.format(50) if steps == planned else None,
    }
    (folder / "run.json").write_text(json.dumps(record))
    lines = [{"step": 0, "eval_loss": 3.0}]
    for step in range(1, steps + 1):
        lines.append(
            {
                "step": step,
                "loss": 3.0 - 100 * rate * step / planned,
                "grad_norm": 1.5,
                "learning_rate": rate,
                "tokens_per_second": 10.0 if step == 1 else 1000.0,
                "real_token_share": 0.9,
                "seconds": 2.0,
            }
            | ({"eval_loss": 2.9 - 100 * rate * step / planned} if step % 10 == 0 else {})
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    start = event("start", 0, f"started at step 0 of {planned}", num_steps=planned)
    events = [start, *changes.get("events", [])]
    (folder / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    return folder


def event(kind: str, step: int, text: str = "", **content) -> dict:
    return {"time": TIME.format(step), "kind": kind, "step": step, "text": text} | content


def sample(step: int, output: str, **changes) -> dict:
    content = {"prompt": "What is gout?", "reference": "A joint disease.", "output": output}
    return event("sample", step, **content | {"finish_reason": "stop"} | changes)
