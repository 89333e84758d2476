"""git ignores what commands write and files that hold secrets; no file holds half a merge."""

import re
import subprocess

import pytest

from tests.conftest import REPOSITORY
from tests.docs import documents

WRITTEN = re.compile(r"--(?:workdir|output|target|local-dir)[= ](?!gs:)([\w./-]+)")
CLONED = re.compile(r"git clone https://\S+/(\w+)\b")

SECRETS = (
    ".env .env.local launch/.env id_rsa id_ed25519.pub server.pem tls.key gcp-key.json apiKey.json "
    "credentials.json configs/credentials.ini my-service-account.json client_secret.json .netrc"
).split()

pytestmark = pytest.mark.skipif(
    not (REPOSITORY / ".git").exists(), reason="this copy of the project is no clone"
)


def ignored(paths: list[str]) -> set[str]:
    command = ["git", "check-ignore", "--no-index", *paths]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def test_what_commands_write_is_ignored():
    found = set()
    for path in (
        *documents.files(),
        *(REPOSITORY / "configs").glob("*.py"),
        *(REPOSITORY / "launch").glob("*.sh"),
    ):
        text = path.read_text(encoding="utf-8")
        for place in (*WRITTEN.findall(text), *CLONED.findall(text)):
            if re.match(r"[a-z]|AlpaCare", place):  # no absolute path, no placeholder such as DIR
                folder = re.search(r"\.\w+$", place) is None
                found.add(place.rstrip("/") + ("/x" if folder else ""))
    assert {"hf/llama-7b/x", "runs/alpacare-7b/x", "AlpaCare/x", "answers.json"} <= found
    assert found - ignored(sorted(found)) == set()


def test_secrets_are_ignored_and_nothing_that_is_tracked():
    assert ignored(SECRETS) == set(SECRETS)
    tracked = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(tracked, cwd=REPOSITORY, capture_output=True, check=True).stdout == b""


def test_no_file_holds_half_a_merge():
    marks = ["git", "grep", "-nE", "^(<{7}|>{7})( |$)"]
    assert subprocess.run(marks, cwd=REPOSITORY, capture_output=True).stdout == b""
