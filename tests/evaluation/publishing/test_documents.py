"""Checklists and `.eval_results` from a real report and the records of runs."""

import json

import huggingface_hub
import pytest
import yaml

from common import cli, sections
from evaluation.judgements import reading, workdirs
from evaluation.publishing import checklists, eval_results, run_records
from evaluation.publishing.documents import ReportDocuments
from evaluation.scoring.measurement import measure
from tests.conftest import REPOSITORY
from tests.support import judge_workdirs

TRAINING = {
    "config": {
        "model": {"checkpoint": "models/llama-7b", "variant": ""},
        "lora": {"rank": 16},
        "optimizer": {"name": "adamw", "learning_rate": 2e-5, "schedule": "cosine"},
        "train": {"epochs": 3, "batch_size": 128, "seed": 42},
        "data": {"path": "/home/me/examples.jsonl", "max_length": 512, "template": "alpaca"},
    },
    "inputs": {"data.path": "ab" * 32},
    "git_commit": "0123456789abcdef",
    "start": "2026-11-01T10:00:00+00:00",
    "end": "2026-11-01T12:30:00+00:00",
}
JUDGING = {
    "config": {"chat": {"model": "gpt-6-luna", "temperature": None, "max_tokens": 4096}},
    "prompt_versions": {"alpacare": "alpacare@1234"},
    "benchmark": "heart",
    "outputs": {"ours": {"file": "/home/me/ours.jsonl", "sha256": "cd" * 32}},
    "references": {},
    "spent": {"usd": 1.25, "tokens": 12_000, "unpriced": 0},
    "start": "2026-11-02T10:00:00+00:00",
    "end": "2026-11-03T10:00:00+00:00",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of two systems, one reference and one judge."""
    folder = judge_workdirs.write(
        tmp_path_factory.mktemp("judged"),
        judge_workdirs.a_verdict,
        items={"heart": ["1", "2", "3", "4"]},
        systems=["ours", "theirs"],
    )
    verdicts, people = reading.read([folder])
    found = measure(verdicts, people, workdirs.read([folder], verdicts), seed=0)
    return json.loads(json.dumps(found.record()))


def put(folder, content, name="run.json"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


def item(checklist, number):
    return next(item for item in checklist.items if item.number == number)


def test_the_numbering_is_the_guidelines():
    tripod, chart = checklists.fill([])
    numbers = [item.number for item in tripod.items]
    assert len(numbers) == len(set(numbers)) == 49
    assert len(dict.fromkeys(number.rstrip("abcdefg") for number in numbers)) == 19
    numbers = [item.number for item in chart.items]
    assert len(numbers) == len(set(numbers)) == 39
    assert len({number.rstrip("abcdei") for number in numbers}) == 12
    assert not any(item.answer for checklist in (tripod, chart) for item in checklist.items)


def test_what_runs_state_is_filled_in_and_the_rest_is_the_authors(report, tmp_path, capsys):
    workdir = put(tmp_path / "judged", JUDGING)
    put(tmp_path / "runs/ours", TRAINING)
    documents = ReportDocuments.read([workdir], [str(tmp_path / "runs/ours")], [])
    documents.write(tmp_path / "report", report)
    known = [*checklists.report_statements(report), *run_records.statements(documents.runs)]
    tripod, chart = checklists.fill(known)
    training = item(tripod, "6b").answer
    for fact in ("LoRA of rank 16", "llama-7b", "2e-05", "3 epochs", "template alpaca"):
        assert fact in training, training
    assert "examples.jsonl (SHA-256 abababababab...)" in item(tripod, "5a").answer
    assert "/home/me" not in str(chart) + str(tripod), "a checklist is published"
    assert "12,000 tokens, $1.25" in item(tripod, "12").answer
    assert "2h30m" in item(tripod, "12").answer
    assert "ours on heart by j: win rate" in item(tripod, "17").answer
    assert "gpt-6-luna judged 2026-11-02 to 2026-11-03" in item(chart, "6b").answer
    assert item(tripod, "13").answer == "" == item(chart, "12a").answer
    text = (tmp_path / "report/checklists/tripod_llm.md").read_text()
    assert "| 13 | Ethics | committee and consent, or waiver | AUTHOR |" in text
    assert f"{tripod.answered} of 49 items answered" in text
    page = (tmp_path / "report/checklists/checklists.html").read_text()
    assert page.count("<mark>AUTHOR</mark>") == 49 + 39 - tripod.answered - chart.answered
    assert f"TRIPOD-LLM: {tripod.answered} of 49 items" in capsys.readouterr().err
    assert not (tmp_path / "report/eval_results").exists()


def test_results_are_in_the_hubs_form(report, tmp_path, capsys):
    score = {"score": 0.41234, "low": 0.3, "high": 0.5, "examples": 12}
    graded = put(tmp_path / "graded", {"rubric": {"repeats": 1}, "start": "2026-11-20T00:00:00"})
    rubric = {"benchmark": "healthbench", "grader": "g", "systems": {"ours": {"overall": score}}}
    put(graded, rubric, "rubric.json")
    put(tmp_path / "mcq", {"config": {"files": ["a/medqa.jsonl"], "method": "likelihood"}})
    config = {"files": ["a/medqa.jsonl"], "method": "likelihood", "shots": 5, "model": "ours"}
    choices = put(tmp_path / "mcq", {"config": config, "start": "2026-11-21T00:00:00"})
    accuracy = {"rate": 0.5, "low": 0.4, "high": 0.6, "questions": 100}
    put(choices, {"accuracy": accuracy}, "summary.json")
    datasets = ["heart=me/Heart", "healthbench=openai/healthbench:hard"]
    documents = ReportDocuments.read([], [str(graded), str(choices)], datasets)
    documents.write(tmp_path / "report", report)
    folder = tmp_path / "report/eval_results"
    names = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))
    assert names == [
        "ours/healthbench-rubric.yaml",
        "ours/heart-win-rate-j.yaml",
        "theirs/heart-win-rate-j.yaml",
    ]
    entries = {
        name: huggingface_hub.parse_eval_result_entries(yaml.safe_load((folder / name).read_text()))
        for name in names
    }
    (first,) = entries["ours/healthbench-rubric.yaml"]
    assert (first.dataset_id, first.task_id) == ("openai/healthbench", "hard")
    assert (first.value, first.date) == (41.23, "2026-11-20")
    assert first.notes == "rubric score in %, grader g; 95 % interval 30.0 to 50.0, 12 items"
    (rate,) = entries["theirs/heart-win-rate-j.yaml"]
    row = next(row for row in report["win_rates"] if row["generator"] == "theirs")
    assert rate.value == round(100 * row["rate"], 2) and rate.task_id == "default"
    assert "against gpt-4, judge j" in rate.notes
    assert "1 on test sets without --hub_datasets are left out" in capsys.readouterr().err


def test_data_sets_of_the_hub_are_checked(report, tmp_path):
    with pytest.raises(ValueError, match="'heart=Heart' is not BENCHMARK=ORG/NAME"):
        ReportDocuments.read([], [], ["heart=Heart"])
    documents = ReportDocuments.read([], [], ["hart=me/Heart"])
    with pytest.raises(ValueError, match="no result on 'hart', only on heart"):
        documents.write(tmp_path, report)


def test_places_without_a_record_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"is no run\.json, and no folder with one"):
        run_records.read([tmp_path])


def test_kinds_are_known_by_what_the_commands_record():
    def flat(config):
        return {f"config.{name}" for name in sections.flatten(cli.load_config(config))}

    recipe = flat(f"{REPOSITORY}/configs/alpacare.py")
    assert set(run_records.RUN_KINDS["training"]) <= recipe
    data = flat(f"{REPOSITORY}/configs/datagen.py")
    assert {run_records.RUN_KINDS[kind][0] for kind in ("tasks", "responses")} <= data
    assert run_records.kind_of(TRAINING) == "training"
    assert run_records.kind_of(JUDGING) == "judging"


def test_slugs_stay_different():
    assert eval_results._slug("a/b") == "a-b" and eval_results._slug("--") == "x"
