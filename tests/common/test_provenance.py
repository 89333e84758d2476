"""run.json and files that are whole or not there."""

import datetime
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys

import jax
import pytest

from common import paths, provenance
from tests.conftest import umask_of


def test_write_text_replaces_a_file(tmp_path):
    path = tmp_path / "a.txt"
    provenance.write_text(path, "old, and longer than the new one")
    provenance.write_text(str(path), "≥ 37.5 °C\n")
    assert path.read_bytes() == "≥ 37.5 °C\n".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("existing", ["old", None])
@pytest.mark.parametrize("crash", ["while writing", "before replacing"])
def test_a_crash_leaves_the_old_file(tmp_path, monkeypatch, crash, existing):
    path = tmp_path / "a.json"
    if existing:
        path.write_text(existing)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power is off"):
        if crash == "while writing":
            patch.setattr(type(path), "write_text", write_half)
        else:
            patch.setattr(os, "replace", fail)
        provenance.write_json(path, {"new": True})
    assert path.exists() == bool(existing)
    if existing:
        assert path.read_text() == existing
    provenance.write_json(path, {"new": True})  # what the crash left is no hindrance
    assert json.loads(path.read_text()) == {"new": True}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def fail(*_, **__):
    raise OSError("power is off")


def write_half(self, text, **_):
    with open(self, "w") as file:
        file.write(text[: len(text) // 2])
    fail()


def test_a_full_disk_names_the_file_and_leaves_no_part_of_it(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"

    def write_half(self, text, encoding):
        self.write_bytes(text.encode(encoding)[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", write_half)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{path}'")):
        provenance.write_text(path, "whole")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")
    seen = []
    replace = os.replace

    def look(source, target):
        seen.append((path.read_text(), source.read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    provenance.write_text(path, "new")
    assert seen == [("old", "new")]
    assert path.read_text() == "new"


def test_write_json_is_for_people_too(tmp_path):
    provenance.write_json(tmp_path / "a.json", {"name": "患者", "values": [1, None]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == (
        '{\n  "name": "患者",\n  "values": [\n    1,\n    null\n  ]\n}\n'
    )


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{", ["not JSON", "line 1"]),
        (b"", ["not JSON"]),
        (b'{"a": 1,}', ["not JSON", "line 1 column 9"]),
        (b"\xff", ["not JSON", "utf-8"]),
        (b"\xef\xbb\xbf{}", ["not JSON", "BOM"]),
        (b"[" * 100_000, ["not JSON", "recursion"]),
        (b'{"a": %s}' % (b"9" * 5000), ["not JSON", "digits"]),
        (b"[]", ["must hold a JSON object, not a list"]),
        (b"null", ["must hold a JSON object"]),
        (paths.GIT_LFS + b"v1\noid sha256:00\nsize 3\n", ["git-lfs pointer", "git lfs pull"]),
    ],
)
def test_a_json_file_that_cannot_be_read_is_named(content, named, tmp_path):
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        provenance.read_json(tmp_path / "settings.json")
    for text in ["settings.json", *named]:
        assert text in str(caught.value)


def test_sha256(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert provenance.sha256(path) == provenance.sha256(str(path)) == known
    content = bytes(range(256)) * 5000  # more than one read
    path.write_bytes(content)
    assert provenance.sha256(path) == hashlib.sha256(content).hexdigest()


def test_describe_says_what_made_a_result():
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    record = provenance.describe(config={"a": 1}, data=["x"])
    after = datetime.datetime.now(datetime.UTC)
    assert list(record) == [
        *("config", "data", "flags", "git_commit", "python", "packages", "host", "start", "end")
    ]
    assert (record["config"], record["data"]) == ({"a": 1}, ["x"])
    assert record["flags"] == sys.argv[1:]
    assert record["python"] == platform.python_version()
    assert record["host"] == platform.node()
    assert record["packages"].keys() == set(provenance.PACKAGES)
    assert record["packages"]["jax"] == jax.__version__
    assert before <= datetime.datetime.fromisoformat(record["start"]) <= after
    assert record["end"] is None
    assert json.loads(json.dumps(record)) == record


def test_who_may_read_a_file_is_not_changed(tmp_path):
    path = tmp_path / "run.json"
    for umask, mode in ((0o077, 0o600), (0o022, 0o600)):  # replaced: as it was
        with umask_of(umask):
            provenance.write_json(path, {})
        assert path.stat().st_mode & 0o777 == mode
    path.chmod(0o664)
    provenance.write_json(path, {})
    assert path.stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize(
    "content", [b"", b'{"config": {"a"', b"\xff\xfe", b"[]", b'{"config": 3}', b"[" * 100_000]
)
def test_a_damaged_run_json_is_named_with_the_remedy(tmp_path, content):
    output = tmp_path / "answers.json"
    output.write_text("[]")
    path = tmp_path / "answers.json.run.json"
    path.write_bytes(content)
    for read in (provenance.is_finished, provenance.replaced):
        with pytest.raises(ValueError, match=r"answers\.json\.run\.json is damaged.*delete it"):
            read(output, {"a": 1})


def test_an_output_is_finished_where_its_settings_are_the_same(tmp_path):
    output = tmp_path / "kept.jsonl"
    assert not provenance.is_finished(output, {})
    output.write_text("")
    with pytest.raises(ValueError, match=r"kept\.jsonl exists .*no kept\.jsonl\.run\.json"):
        provenance.is_finished(output, {"input": "a" * 64})
    made_with = {"input": "a" * 64, "old": 1}
    provenance.write_json(provenance.run_json(output), {"config": made_with})
    assert provenance.is_finished(output, made_with)
    changes = r"\(input: 'a{12}\.\.\.' before, 'b{12}\.\.\.' now; old: 1 before, None now\)"
    with pytest.raises(ValueError, match=changes):
        provenance.is_finished(output, {"input": "b" * 64})


def test_a_package_that_is_not_there_has_no_version(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("jax", "no-such-package-anywhere"))
    packages = provenance.describe()["packages"]
    assert packages == {"jax": jax.__version__, "no-such-package-anywhere": None}


def git(folder, *args):
    environment = {"GIT_AUTHOR_NAME": "a", "GIT_COMMITTER_NAME": "a", "HOME": str(folder)}
    environment |= {"GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_EMAIL": "a@b"}
    command = ["git", "-C", str(folder), *args]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A repository with a package in it, and what `describe` says of its commit."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    module = tmp_path / "project" / "package" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(module))
    return module, lambda: provenance.describe()["git_commit"]


def test_the_commit_and_whether_it_is_all(code):
    module, commit = code
    assert commit() is None, "no repository"
    project = module.parent.parent
    git(project, "init")
    git(project, "add", ".")
    git(project, "commit", "-m", "first")
    head = git(project, "rev-parse", "HEAD")
    assert commit() == head
    module.write_text("# changed")
    assert commit() == head + "-dirty"


def test_a_repository_around_the_project_is_not_its_own(code):
    module, commit = code
    around = module.parent.parent.parent
    git(around, "init")
    git(around, "add", ".")
    git(around, "commit", "-m", "somebody else's")
    assert commit() is None


def test_the_launcher_of_a_copy_says_its_commit(code, monkeypatch):
    _, commit = code
    monkeypatch.setenv("ALPACARE_GIT_COMMIT", "abc-dirty")
    assert commit() == "abc-dirty"
    monkeypatch.setenv("ALPACARE_GIT_COMMIT", "")
    assert commit() is None


@pytest.mark.parametrize(
    "error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)], ids=["none", "hangs"]
)
def test_a_git_that_does_not_answer(monkeypatch, error):
    def run(*_, **__):
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert provenance.describe()["git_commit"] is None
