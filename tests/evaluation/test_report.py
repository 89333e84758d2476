"""The command: what it writes, twice the same, and its errors."""

import json
import os
import re
import subprocess
import sys

import pytest

from evaluation import report
from tests.conftest import REPOSITORY
from tests.support import commands, judge_workdirs


def run(*args):
    command = [sys.executable, "-m", "evaluation.report", *map(str, args)]
    env = os.environ | {"PYTHONHASHSEED": "1"}
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=env)


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "run.json"
    }


def test_everything_is_written_and_twice_the_same(tmp_path):
    """In two processes with different hash seeds; what an earlier report left goes, alone."""
    folder = judge_workdirs.write(
        tmp_path / "work",
        judge_workdirs.a_verdict,
        items={"heart": ["1", "2", "3", "4"]},
        systems=["ours", "theirs"],
    )
    labels = judge_workdirs.write_lines(
        tmp_path / "labels.jsonl",
        [judge_workdirs.judgement("2", "model_first", "tie", judge="human")],
    )
    training = judge_workdirs.write_lines(
        tmp_path / "training.jsonl", [{"instruction": "Question 1?", "output": "Yes."}]
    )
    names = tmp_path / "systems.json"
    names.write_text('{"ours": {"name": "Ours"}}')
    old = tmp_path / "one" / "figures" / "backbones-j.png"
    mine = [tmp_path / "one" / name for name in ("figures/mine.png", "tables/table1.tex")]
    for path in (old, *mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    flags = (f"--judgements={folder}", f"--labels={labels}", f"--systems={names}")
    process = run(*flags, f"--training={training}", f"--output={tmp_path / 'one'}")
    assert process.returncode == 0, process.stderr
    report.run(
        judgements=[str(folder)],
        output=tmp_path / "two",
        labels=[str(labels)],
        systems_file=str(names),
        training=[str(training)],
        seed=0,
        page_mib=20.0,
    )
    assert not old.exists()
    for path in mine:
        path.unlink()  # an error where it is gone
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert "checklists/tripod_llm.md" in one and "checklists/chart.md" in one
    figures = ("win_rates", "comparisons", "difficulty", "position", "lengths")
    tables = ("win_rates", "judges", "agreement", "comparisons", "difficulty", "lengths")
    tables += ("signals", "safety", "contamination", "summary", "questions")
    assert set(one) >= {
        "report.json",
        "report.html",
        "figures/question-1.svg",
        *(f"figures/{name}.{end}" for name in figures for end in ("png", "svg")),
        *(f"tables/{name}.{end}" for name in tables for end in ("md", "tex")),
    }
    assert json.loads(one["report.json"])["verdicts"] == 16
    assert b"Ours" in one["tables/win_rates.tex"]
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert record["end"]
    assert list(record["config"]["judgements"]) == [str(folder / "judgements.jsonl")]


def test_a_workdir_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--judgements takes workdirs of"):
        report.run(
            judgements=[str(tmp_path)],
            output=tmp_path / "out",
            labels=[],
            systems_file="",
            seed=0,
            page_mib=1.0,
        )
    assert not (tmp_path / "out").exists()


def test_a_report_that_is_not_whole_has_no_run_json(tmp_path, monkeypatch):
    folder = judge_workdirs.write(tmp_path / "work", lambda _: "tie", items={"heart": ["1"]})
    settings = {"judgements": [str(folder)], "output": tmp_path / "out", "labels": []}
    settings |= {"systems_file": "", "seed": 0, "page_mib": 1.0}
    report.run(**settings)
    assert (tmp_path / "out" / "run.json").exists()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.table_formats, "write", full)
    with pytest.raises(OSError, match="No space"):
        report.run(**settings)
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_report_into_a_workdir_would_lose_its_run_json(tmp_path):
    judge_workdirs.write(tmp_path, lambda _: "tie", items={"heart": ["1"]})
    (tmp_path / "run.json").write_text("how it was judged")
    settings = {"labels": [], "systems_file": "", "seed": 0, "page_mib": 1.0}
    with pytest.raises(ValueError, match="choose another --output"):
        report.run(judgements=[str(tmp_path)], output=tmp_path, **settings)
    assert (tmp_path / "run.json").read_text() == "how it was judged"


def test_no_workdir_is_a_wrong_flag():
    for flag in ("--judgements=", "--judgements=a,,b"):
        process = commands.run("evaluation.report", flag, "--output=out")
        assert process.returncode == 2
        assert "one or several" in process.stderr


def test_judgements_in_one_order_are_marked_everywhere(tmp_path):
    """Beside a judge in both orders: in each table that names the judge, and on the page."""
    folder = judge_workdirs.write(tmp_path / "d", lambda _: "tie", items={"heart": ["1", "2"]})
    record = {"benchmark": "heart", "generator": "ours", "reference": "gpt-4", "judge": "once"}
    foreign = judge_workdirs.write_lines(
        tmp_path / "once.jsonl", [record | {"id": i, "verdict": "model"} for i in ("1", "2")]
    )
    out = tmp_path / "out"
    settings = {"labels": [], "systems_file": "", "seed": 0, "page_mib": 1.0}
    report.run(judgements=[str(folder), str(foreign)], output=out, **settings)
    marked = 0
    for path in [*(out / "tables").glob("*.md"), out / "report.html", *out.glob("figures/*.svg")]:
        text = path.read_text(encoding="utf-8")
        marked += text.count("once (one order)")
        assert re.sub("judged once|once.jsonl", "", text).count("once") == text.count(
            "once (one order)"
        ), path
    assert marked > 5
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "each pair judged in both orders, except by once (one order)" in page
    assert "once (one order): each pair was judged once" in page
    judges = json.loads((out / "report.json").read_text())["judges"]
    assert {name: judge["one_order"] for name, judge in judges.items()} == {
        "j": False,
        "once (one order)": True,
    }
    assert judges["once (one order)"]["position"]["first_preference"] is None
