"""The tasks command: whole runs against a local server."""

import json
import re
from pathlib import Path

import pytest

from common import sections
from common.records import read_tasks
from configs import datagen as config_file
from datagen import tasks
from datagen.chat import attempts
from datagen.chat.errors import RunStoppedError
from datagen.config import DatagenConfig
from tests.datagen.writing.test_requests import SEEDS, make_teacher
from tests.support import teacher
from tests.support.chat_server import ChatServer, openai_reply, question


@pytest.fixture
def server():
    server = ChatServer()
    server.answer = teacher.write_tasks
    yield server
    server.close()


def make_config(server=None, **changes) -> DatagenConfig:
    config = config_file.get_config()
    config.update_from_flattened_dict(
        {
            "tasks.num_tasks": 60,
            "teacher.base_url": f"{server.url}/v1" if server else "",
            "teacher.model": "stand-in",
            "teacher.concurrency": 4,
            "teacher.price_input": 1.0,
            "teacher.price_output": 10.0,
        }
        | {name.replace("__", "."): value for name, value in changes.items()}
    )
    return sections.build(DatagenConfig, config.to_dict())


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_against_a_server_that_fails(server, tmp_path):
    server.faults, server.stall = 0.3, 0.2
    config = make_config(server, teacher__attempts=20, teacher__timeout_seconds=5.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "INITIAL_BACKOFF", 0.01)
        patch.setattr(attempts, "MAX_BACKOFF", 0.05)
        tasks.run(config, tmp_path, dry_run=False)
    kept = read_tasks(tmp_path / "tasks.jsonl")
    assert len(kept) == 60
    assert {task.input for task in kept} == {"", "DNA of NA, sodium."}
    source = kept[0].source
    assert source["model"] == "stand-in-1" and len(source["seeds"]) == 3
    record = json.loads((tmp_path / "tasks.jsonl.run.json").read_text())
    assert record["counts"]["kept"] == 60
    rejected = read(tmp_path / "rejected.jsonl")
    assert sum(record["counts"]["rejected"].values()) == len(rejected) > 0
    assert record["spent"]["usd"] > 0
    # Again: the same bytes, and no request.
    before = (tmp_path / "tasks.jsonl").read_bytes()
    asked = len(server.bodies)
    tasks.run(config, tmp_path, dry_run=False)
    assert (tmp_path / "tasks.jsonl").read_bytes() == before
    assert len(server.bodies) == asked
    # More of them: the first ones stay.
    tasks.run(make_config(server, tasks__num_tasks=80), tmp_path, dry_run=False)
    more = read_tasks(tmp_path / "tasks.jsonl")
    assert more[:60] == kept and len(more) == 80


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_run_with_a_schema(server, tmp_path, provider, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    url = server.url if provider == "anthropic" else f"{server.url}/v1"
    config = make_config(
        server,
        tasks__reply="json",
        tasks__num_tasks=20,
        teacher__provider=provider,
        teacher__base_url=url,
    )
    tasks.run(config, tmp_path, dry_run=False)
    assert len(read_tasks(tmp_path / "tasks.jsonl")) == 20
    sent = json.dumps(server.bodies[0])
    assert '"json_schema"' in sent and '"additionalProperties": false' in sent


def test_a_dry_run_asks_nothing(server, tmp_path, capsys):
    tasks.run(make_config(server), tmp_path / "run", dry_run=True)
    assert server.bodies == [] and not (tmp_path / "run").exists()
    assert "8 requests to send" in capsys.readouterr().err


def test_no_more_requests_than_are_allowed(server, tmp_path, capsys):
    config = make_config(server, tasks__max_requests=2)
    tasks.run(config, tmp_path, dry_run=True)
    assert capsys.readouterr().err.startswith("2 requests to send")
    tasks.run(config, tmp_path, dry_run=False)
    assert len(server.bodies) == 2
    assert 12 < len(read_tasks(tmp_path / "tasks.jsonl")) < 24
    assert "the limit of 2 requests is reached" in capsys.readouterr().err
    tasks.run(make_config(server, tasks__max_requests=3), tmp_path, dry_run=True)
    assert capsys.readouterr().err.startswith("1 requests to send, 2 answers stored")
    with pytest.raises(ValueError, match=r"tasks\.max_requests must be at least 0"):
        make_config(server, tasks__max_requests=-1)
    server.answer = lambda body: "I cannot write tasks."
    with pytest.raises(ValueError, match="has no task; see"):
        tasks.run(config, tmp_path / "none", dry_run=False)
    assert (tmp_path / "none/tasks.jsonl").read_text() == "" and len(server.bodies) == 4


def test_what_will_be_sent_follows_from_what_the_replies_gave(server, tmp_path, capsys):
    server.answer = lambda body: teacher.write_tasks(body, count=6)  # half of what is asked for
    tasks.run(make_config(server, tasks__num_tasks=40), tmp_path, dry_run=False)
    before, more = len(server.bodies), make_config(server, tasks__num_tasks=160)
    capsys.readouterr()
    tasks.run(more, tmp_path, dry_run=True)
    said = re.match(r"(\d+) requests to send, (\d+) answers stored", capsys.readouterr().err)
    assert said and int(said[2]) == before == len(server.bodies)
    tasks.run(more, tmp_path, dry_run=False)
    sent = len(server.bodies) - before
    assert 0.7 * sent <= int(said[1]) <= 1.1 * sent and sent > 20


LAYOUTS = {
    "as asked for": lambda text: text,
    "full-width punctuation": lambda text: text.replace(": ", "：").replace(". Type", "．Type"),
    "emoji": lambda text: re.sub(r"(?m)^(Topic|View|Input)", "🔹 \\1", text),
    "bold": lambda text: re.sub(
        r"(Type|Topic|View|Difficulty|Instruction|Input):", r"**\1:**", text
    ),
    "no-break spaces": lambda text: text.replace("\nView", "\n\u00a0\u200bView"),
    "one line": lambda text: re.sub(r"\n(?=Topic|View|Difficulty|Instruction|Input)", " | ", text),
    "words before and after": lambda text: f"Sure! Here they are.\n{text}###\nLet me know!",
    "thoughts": lambda text: f"<think>\n{text.replace('Explain', 'DRAFT')}</think>\n{text}",
    "an end token": lambda text: f"{text}<|im_end|>",
    "no input in words": lambda text: text.replace("<noinput>", "No input is needed."),
    "German": lambda text: text.replace("<noinput>", "Keine Eingabe erforderlich."),
}


def test_every_layout_of_a_teacher_is_read(server, tmp_path):
    layouts = list(LAYOUTS.values())
    server.answer = lambda body: layouts[len(server.bodies) % len(layouts)](
        teacher.write_tasks(body)
    )
    count = 9 * len(layouts)  # of twelve, two are flawed, and one may say the same as another
    config = make_config(server, teacher__concurrency=1, tasks__num_tasks=count)
    tasks.run(config, tmp_path, dry_run=False)
    kept = read_tasks(tmp_path / "tasks.jsonl")
    assert len(kept) == count and len(server.bodies) <= len(layouts) + 1
    assert {task.input for task in kept} == {"", "DNA of NA, sodium."}
    assert not any("DRAFT" in task.instruction for task in kept)
    assert {task.difficulty for task in kept} == {1, 2, 3, 4, 5}


def test_a_stop_writes_nothing_and_offline_writes_what_there_is(server, tmp_path):
    def until_the_key_is_revoked(body):
        if len(server.bodies) == 3:
            server.always = (401, {"error": {"message": "revoked"}})
        return teacher.write_tasks(body)

    server.answer = until_the_key_is_revoked
    with pytest.raises(RunStoppedError, match="revoked"):
        tasks.run(make_config(server, teacher__concurrency=1), tmp_path, dry_run=False)
    assert not (tmp_path / "tasks.jsonl").exists()
    asked = len(server.bodies)
    with pytest.raises(ValueError, match="offline, and none of the answers is stored"):
        other = make_config(server, offline=True, teacher__model="other")
        tasks.run(other, tmp_path, dry_run=False)
    assert not (tmp_path / "tasks.jsonl").exists()
    tasks.run(make_config(server, offline=True), tmp_path, dry_run=False)
    assert len(server.bodies) == asked
    assert 0 < len(read_tasks(tmp_path / "tasks.jsonl")) < 60, "what there is"
    record = json.loads((tmp_path / "tasks.jsonl.run.json").read_text())
    assert record["counts"]["replies"] == 2
    # Resumed, it collects the same tasks as a run in one go.
    server.always, server.answer = None, teacher.write_tasks
    tasks.run(make_config(server), tmp_path, dry_run=False)
    tasks.run(make_config(server), tmp_path / "in one go", dry_run=False)
    in_one_go = (tmp_path / "in one go" / "tasks.jsonl").read_bytes()
    assert (tmp_path / "tasks.jsonl").read_bytes() == in_one_go


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tasks__seeds": "no.jsonl"}, "no such file"),
        ({"tasks__prompt": "no"}, "choose from"),
        ({"tasks__seeds_per_request": 999}, "contains 64 seeds"),
        ({"budget_usd": -1.0}, "budget_usd must be at least 0"),
        ({"budget_usd": float("nan")}, "must be a finite number"),
        ({"budget_tokens": -1}, "budget_tokens must be at least 0"),
    ],
)
def test_bad_settings(tmp_path, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        tasks.run(make_config(**changes), tmp_path, dry_run=True)


def test_other_seeds_replace_nothing(server, tmp_path):
    tasks.run(make_config(server, tasks__num_tasks=3), tmp_path, dry_run=False)
    before, asked = (tmp_path / "tasks.jsonl").read_bytes(), len(server.bodies)
    lines = Path(SEEDS).read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "mine.jsonl").write_text("".join(lines[:40]), encoding="utf-8")
    other = make_config(server, tasks__num_tasks=3, tasks__seeds=str(tmp_path / "mine.jsonl"))
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=r"tasks.jsonl was made from other seeds.*--workdir"):
            tasks.run(other, tmp_path, dry_run=dry_run)
    assert (tmp_path / "tasks.jsonl").read_bytes() == before
    assert len(server.bodies) == asked
    (tmp_path / "tasks.jsonl").unlink()
    tasks.run(other, tmp_path, dry_run=False)
    assert read_tasks(tmp_path / "tasks.jsonl")


def test_a_seed_without_labels_is_named(tmp_path):
    (tmp_path / "seeds.jsonl").write_text('{"id": "s9", "instruction": "Define gout."}')
    with pytest.raises(ValueError, match="seed 's9' has no type"):
        tasks.run(make_config(tasks__seeds=str(tmp_path / "seeds.jsonl")), tmp_path, dry_run=True)


def test_a_seed_with_half_a_surrogate_pair_is_named(tmp_path):
    seed = read_tasks(SEEDS)[0].record() | {"topic": "\ud83d"}
    (tmp_path / "seeds.jsonl").write_text(json.dumps(seed))
    with pytest.raises(ValueError, match=r"seeds.jsonl:1: field 'topic' is not valid Unicode"):
        tasks.read_seeds(make_config(tasks__seeds=str(tmp_path / "seeds.jsonl")).tasks)


def test_the_question_is_the_prompt(server):
    assert teacher.is_for_tasks({"messages": [{"content": make_teacher().request([]).user}]})
    assert question({"messages": [{"content": "x"}]}) == "x"
    assert openai_reply("x")["choices"]
