"""croissant.json: valid for mlcroissant, which reads the records by it; nothing is guessed."""

import json

import pytest

from datagen.analysis import croissant
from datagen.analysis.card import CardSettings

SETTINGS = CardSettings("apache-2.0", ("en",), "Gout tasks", ("medical",), "Not for\ncare.")
RECORDS = [
    {
        "id": str(number),
        "instruction": f"What is gout? {number}",
        "input": "",
        "output": "A disease of joints.",
        "difficulty": number,
        "source": {"model": "gpt-6-luna", "prompt_version": "tasks@12"},
    }
    for number in (1, 2, 3)
]
RUN = {
    "start": "2026-11-01T10:00:00+00:00",
    "end": "2026-11-03T10:00:00+00:00",
    "config": {"threshold": 0.7, "against": "/home/me/test.jsonl"},
    "counts": {"read": 4, "kept": 3},
}


def made(folder, records=RECORDS, name="gout.jsonl", run=RUN):
    path = folder / name
    lines = [json.dumps(record) for record in records]
    path.write_text(f"[{','.join(lines)}]" if name.endswith(".json") else "\n".join(lines) + "\n")
    if run:
        (folder / f"{name}.run.json").write_text(json.dumps(run))
    content = croissant.croissant(SETTINGS, path, records)
    (folder / "croissant.json").write_text(json.dumps(content))
    return content


def test_what_the_runs_know_is_filled_in_and_the_rest_marked(tmp_path):
    content = made(tmp_path)
    assert (
        content["rai:dataCollection"]
        == ("Sources of the records: 3 records: model gpt-6-luna, prompt\\_version tasks@12.")
        or "gpt-6-luna" in content["rai:dataCollection"]
    )
    assert content["rai:dataLimitations"] == "Not for care."
    assert content["rai:machineAnnotationTools"] == ["gpt-6-luna"]
    assert content["rai:dataCollectionTimeFrame"] == ["2026-11-01", "2026-11-03"]
    assert "threshold: 0.7" in content["rai:dataPreprocessingProtocol"]
    assert "kept: 3" in content["rai:dataPreprocessingProtocol"]
    assert {content[name] for name in croissant.AUTHORS_FIELDS} == {croissant.TO_STATE}
    assert "/home/me" not in json.dumps(content)
    fields = {field["name"]: field["dataType"] for field in content["recordSet"][0]["field"]}
    assert fields["output"] == "sc:Text" and fields["difficulty"] == "sc:Integer"
    assert "source" not in fields, "an object is no column"


def test_people_are_not_called_models(tmp_path):
    records = [record | {"source": "Dr. Lee"} for record in RECORDS]
    content = made(tmp_path, records, run=None)
    assert not {"rai:machineAnnotationTools", "rai:dataCollectionType"} & content.keys()
    assert "Dr. Lee" in content["rai:dataCollection"]


def test_columns_are_those_of_the_file(tmp_path):
    """Records that are read get an id and an input, which the file may lack."""
    records = [{"instruction": "What is gout?", "output": "A disease."}]
    (tmp_path / "gout.csv").write_text("instruction,output\nWhat is gout?,A disease.\n")
    read = [record | {"id": "0", "input": ""} for record in records]
    content = croissant.croissant(SETTINGS, tmp_path / "gout.csv", read)
    assert [f["name"] for f in content["recordSet"][0]["field"]] == ["instruction", "output"]
    assert content["distribution"][0]["encodingFormat"] == "text/csv"


def test_a_packed_file_has_no_columns(tmp_path):
    assert made(tmp_path, name="gout.jsonl.gz")["recordSet"] == []


@pytest.mark.parametrize("name", ["gout.jsonl", "gout.json"])
def test_mlcroissant_validates_it_and_reads_the_records(tmp_path, name):
    mlcroissant = pytest.importorskip("mlcroissant", reason="pip install mlcroissant==1.1.1")
    made(tmp_path, name=name)
    dataset = mlcroissant.Dataset(str(tmp_path / "croissant.json"))  # raises for an invalid one
    issues = dataset.metadata.ctx.issues
    assert not issues.errors, issues.report()
    read = list(dataset.records("records"))
    assert [row["records/output"] for row in read] == [b"A disease of joints."] * 3
    assert [row["records/difficulty"] for row in read] == [1, 2, 3]
    assert dataset.metadata.data_use_cases, "the RAI fields are understood"
