"""The command: what it plans, draws and writes, and how it is used again."""

import json

import pytest

from evaluation import annotate, report
from evaluation.annotation import exports
from evaluation.annotation.candidates import draw, from_files, from_judgements
from evaluation.annotation.pairs import read_key
from evaluation.judgements import reading, workdirs
from tests.support import annotated, commands, judge_workdirs


def run(*flags):
    return commands.run("evaluation.annotate", *flags)


def test_from_files_without_a_judge(tmp_path, capsys):
    """As docs/medical_evaluation.md has it; run again, it writes the same page."""
    items = [{"id": f"q{i}", "instruction": f"What of {i}?"} for i in range(9)]
    bench = judge_workdirs.write_lines(tmp_path / "ward.jsonl", items)
    answers = {
        name: judge_workdirs.write_lines(
            tmp_path / f"{name}.jsonl",
            [item | {"output": f"{text} {item['id']}.", "generator": name} for item in items],
        )
        for name, text in (("ours", "Rest,"), ("theirs", "Says theirs:"), ("gpt-4", "See"))
    }
    sources = [str(answers[name]) for name in ("ours", "theirs", "gpt-4")]
    candidates = from_files(str(bench), sources[:2], sources[2:], tmp_path)
    settings = {"annotators": ["lee", "patel"], "overlap": 2, "labelled": set(), "seed": None}
    settings |= {"output": tmp_path / "page", "settings": {"items": 4}}
    annotate.run(candidates, counts={"ward": 4}, **settings)
    printed = capsys.readouterr().err
    assert "4 answers contain 'theirs', which annotators will see" in printed
    assert "8 pairs; lee 8, patel 8; keep key.json to yourself" in printed
    page = (tmp_path / "page" / "annotate.html").read_bytes()
    record = json.loads((tmp_path / "page" / "run.json").read_text())
    assert record["end"]
    assert "seed" not in record["config"], "only the key has it"
    annotate.run(candidates, counts={"ward": 4}, **settings)
    assert (tmp_path / "page" / "annotate.html").read_bytes() == page
    with pytest.raises(ValueError, match="choose another --output"):
        annotate.run(candidates, counts={"ward": 5}, **settings)
    with pytest.raises(ValueError, match="nothing is left"):
        annotate.run(candidates, counts={"ward": 0}, **settings | {"output": tmp_path / "no"})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--judgements=x", "--items=3", "--overlap=2"], "at least as many as --overlap"),
        (["--benchmark=b", "--outputs=a", "--references=c", "--width=9"], "--width with --judge"),
    ],
)
def test_wrong_flags(tmp_path, flags, message):
    process = run(*flags, f"--output={tmp_path}")
    assert process.returncode == 2
    assert message in " ".join(process.stderr.split())


def test_the_next_labels_are_of_other_items(tmp_path):
    """With the first labels the plan knows the judge, and draws what they do not cover."""
    folder = annotated.write(tmp_path, count=12)
    first = {a.item for a in read_key(folder / "page" / "key.json").assignments.values()}
    flags = (f"--judgements={folder / 'work'}", f"--labels={folder / 'page'}")
    process = run(*flags, "--width=40", f"--output={tmp_path / 'next'}", "--dry_run")
    assert process.returncode == 0, process.stderr
    assert "j on ours against gpt-4, heart: 12 labelled, interval" in process.stderr
    assert not (tmp_path / "next" / "key.json").exists()
    process = run(*flags, "--items=6", f"--output={tmp_path / 'next'}")
    assert process.returncode == 0, process.stderr
    then = {a.item for a in read_key(tmp_path / "next" / "key.json").assignments.values()}
    assert len(then) == 6
    assert not then & first
    verdicts, _ = reading.read([folder / "work"])
    with pytest.raises(ValueError, match="'nobody' was not judged; choose from ours"):
        from_judgements(verdicts, workdirs.read([folder / "work"], verdicts), ["nobody"], [])


def test_labels_too_few_for_a_correction_count_in_the_plan(tmp_path, monkeypatch, capsys):
    folder = annotated.write(tmp_path, count=5)
    labels = exports.load([str(folder / "page")]).sources["preference"]
    verdicts, people = reading.read([folder / "work"], labels)
    candidates = from_judgements(verdicts, workdirs.read([folder / "work"], verdicts), [], [])
    monkeypatch.setattr(annotate, "MAX_LISTED", 0)
    (need,) = annotate.planned(0.6, verdicts, people, candidates)
    assert need.labelled == 5 and need.needed == need.missing + 5
    assert "not listed: 1, of which 1 need more items" in capsys.readouterr().err
    assert len(draw(candidates, set(), {"heart": 60}, seed=1)) == 24
    assert "heart: 24 items are left to label, not 60" in capsys.readouterr().err


def test_the_report_reads_the_folder(tmp_path):
    """People come first on the page; run.json has the digest of each export."""
    folder = annotated.write(tmp_path)
    report.run(
        judgements=[str(folder / "work")],
        output=tmp_path / "report",
        labels=[str(folder / "page")],
        systems_file="",
        seed=0,
        page_mib=1.0,
    )
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert page.index("Agreement of people with each other") < page.index("<section id=rates>")
    assert page.index("<td>helpfulness</td>") < page.index("Rogan–Gladen")
    used = json.loads((tmp_path / "report" / "run.json").read_text())["config"]["labels"]
    assert [path.rpartition("/")[2] for path in used] == ["lee.json", "patel.json"]
