"""Every form in which people have data: read, or an error that says what the file is."""

import gzip
import io
import json
import os
import tarfile
import zipfile

import pytest

from common import data_file, jsonl

RECORDS = [
    {"id": "a", "instruction": "Explain fever.", "input": "", "output": "Ωμέγα, \u2028{x}"},
    {"id": "7", "instruction": "List 2 signs.", "input": "DNA", "output": 'Cough;\n"fever".'},
]
LINES = "".join(map(jsonl.line, RECORDS))
ARRAY = json.dumps(RECORDS, indent=1, ensure_ascii=False)
ONE = jsonl.line(RECORDS[0])


def table(delimiter=",", line_end="\r\n"):
    rows = [list(RECORDS[0]), *(list(record.values()) for record in RECORDS)]
    cells = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    return line_end.join(map(delimiter.join, cells)) + line_end


def wrapped(**around):
    return json.dumps(around | {"data": RECORDS}, indent=1)


def read(path):
    return [record for _, record in data_file.read(path)]


@pytest.mark.parametrize(
    "name, content",
    {
        "x.jsonl": LINES,
        "lines named.json": LINES,
        "array named.jsonl": ARRAY,
        "array on one line.json": json.dumps(RECORDS),
        "blank lines.jsonl": f"\n{LINES}\n \n".replace("}\n{", "}\n\n{"),
        "windows.jsonl": LINES.replace("\n", "\r\n"),
        "windows.json": ARRAY.replace("\n", "\r\n"),
        "upper case.JSONL": LINES,
        "no ending": LINES,
        "mark.jsonl": "\ufeff" + LINES,
        "marks of two files.jsonl": "\ufeff" + LINES.replace("}\n{", "}\n\ufeff{"),
        "mark.json": "\ufeff" + ARRAY,
        "utf-16.jsonl": LINES.encode("utf-16"),
        "utf-16 without mark.json": ARRAY.encode("utf-16-le"),
        "data key.json": wrapped(),
        "data key on one line.jsonl": json.dumps({"train": RECORDS}),
        "data key and a version.json": wrapped(version="1.0", size=2),
        "x.jsonl.gz": gzip.compress(LINES.encode(), mtime=0),
        "gzip named.jsonl": gzip.compress(LINES.encode(), mtime=0),
        "not gzip.jsonl.gz": LINES,
        "x.json.gz": gzip.compress(ARRAY.encode(), mtime=0),
        "UPPER.CSV": table(),
        "mark.csv": "\ufeff" + table(),
        "x.csv.gz": gzip.compress(table().encode(), mtime=0),
        "table named.txt": table(),
        "semicolons.csv": table(";"),
        "x.tsv": table("\t", "\n"),
        "excel.tsv": table("\t").encode("utf-16"),
    }.items(),
)
def test_every_form_gives_the_same_records(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read(path) == RECORDS


@pytest.mark.parametrize("name", ["x.parquet", "parquet named.jsonl", "x.parquet.gz"])
def test_parquet(tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), buffer)
    content = buffer.getvalue()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(path) == RECORDS
    path.write_bytes(content[:-9])
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        read(path)


def test_parquet_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1PAR1")
    with pytest.raises(ValueError, match=r"x\.parquet is a Parquet file; run: pip install '\.\[pa"):
        read(path)


@pytest.mark.parametrize(
    "content", ["", "\n \n", "\ufeff", "[]", '{"data": []}', "instruction,b\n"]
)
def test_files_without_records(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    assert read(path) == []


def test_a_location_is_the_line_or_the_position(tmp_path):
    def locations(name, content):
        (tmp_path / name).write_text(content)
        return [
            location.removeprefix(str(tmp_path)) for location, _ in data_file.read(tmp_path / name)
        ]

    assert locations("a.jsonl", "\n" + LINES) == ["/a.jsonl:2", "/a.jsonl:3"]
    assert locations("a.json", ARRAY) == ["/a.json, record 0", "/a.json, record 1"]
    assert locations("a.csv", table(line_end="\n")) == ["/a.csv:2", "/a.csv:4"]  # where each ends


DEEP = '{"a": ' * 100_000


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.jsonl", ONE + '{"a": 1', ":2: not JSON: "),
        ("x.jsonl", ONE[:-3] + "\n" + LINES, ":1: not JSON: "),
        ("x.jsonl", ONE + "[1]\n", ":2: a record must be a JSON object"),
        ("x.jsonl", '["a"]\n["b"]\n', ":1: a record must be a JSON object"),
        ("x.json", "[1]", ", record 0: a record must be a JSON object"),
        ("x.json", '[\n{"a" 1}]', ":2: not JSON: "),
        ("x.json", '[\n{"a": 1}\n{"b": 2}\n]', ":3: not JSON: "),
        ("x.json", '{"data": [\n{"a": 1},\n{"b" 2}\n]}', ":3: not JSON: "),
        ("x.json", json.dumps(RECORDS[0], indent=1) * 2, ":6: not JSON: more than one value; "),
        ("x.jsonl", LINES.replace("}\n", "},\n"), ":1: not JSON: more than one value.*character "),
        ("x.jsonl.gz", gzip.compress(b"{}\n{", mtime=0), ":2: not JSON: "),
        ("x.jsonl", '{"a": NaN}', ":1: NaN is not JSON; write null"),
        ("x.json", '[{"a": 1},\n{"a": -Infinity}]', ": -Infinity is not JSON; write null"),
        ("x.jsonl", '{"a": 1e999}', ":1: the number 1e999 is too large"),
        ("x.jsonl", ONE + '{"a": ' + "7" * 5000 + "}", ":2: a number of 5,000 digits"),
        ("x.jsonl", ONE + '{"output": "1", "output": "2"}', ":2: key 'output' occurs twice"),
        ("x.jsonl", DEEP, ":1: a value is nested too deeply"),
        ("x.json", f"[\n{'[' * 100_000}", ": a value is nested too deeply"),
        ("x.jsonl", "Entry not found", ":1: not JSON; the line begins 'Entry not found'"),
        ("x.jsonl", "<!DOCTYPE html>\n<html>", " is a web page, perhaps of an error; download"),
        ("x.csv", '\n<?xml version="1.0"?><Error>', " is a web page"),
        ("x.csv", 'instruction,output\na,b\na,"b', ":3: not CSV: unexpected end of data"),
        ("x.csv", "instruction,output\na,b\na,b,c\n", ":3: 3 cells under 2 column names"),
        ("x.csv", "output,output\n", ":1: two columns have the same name"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", " is a git-lfs pointer"),
        ("x.jsonl", '{"a": "fièvre"}'.encode("latin-1"), ": not UTF-8 .* iconv -f WIN"),
        ("x.jsonl", b"BZh91AY", " is compressed with bzip2; unpack it: bunzip2"),
        ("x.arrow", b"\xff\xff\xff\xff\x08", " is an Arrow file; convert it"),
        ("x.csv", b"\x10:\0\0\0\0\0\0{}", " holds no text; give JSON lines"),  # safetensors
        ("x.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-20], ": not a whole gzip file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"x\.\w+(\.gz)?{message}") as caught:
        read(path)
    assert len(str(caught.value)) < 400


def test_a_damaged_gzip_file(tmp_path):
    whole = gzip.compress((LINES * 50).encode())
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(whole[:30] + b"\xff" * 20 + whole[50:])
    with pytest.raises(ValueError, match=r"x\.jsonl\.gz: not a whole gzip file"):
        read(path)


def test_archives_are_named(tmp_path):
    (tmp_path / "x.jsonl").write_text(LINES)
    with zipfile.ZipFile(tmp_path / "a.jsonl", "w") as archive:
        archive.write(tmp_path / "x.jsonl")
    with tarfile.open(tmp_path / "b.tgz", "w:gz") as archive:
        archive.add(tmp_path / "x.jsonl", "x.jsonl")
    with pytest.raises(ValueError, match="is a zip archive or an Excel workbook; unpack it"):
        read(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="is a tar archive; unpack it"):
        read(tmp_path / "b.tgz")


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent\.jsonl"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(
        FileNotFoundError, match="hf download --repo-type=dataset owner/name --local"
    ):
        read("owner/name")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # read once only, or never: as /dev/stdin or <(zcat FILE)
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(ValueError, match="is a pipe or a device; write its content to a file"):
            read(path)
