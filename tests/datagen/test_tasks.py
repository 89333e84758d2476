"""Tasks by a teacher: what it is asked, what is kept of its replies, and how a run goes on."""

import dataclasses
import doctest
import json

import pytest

from common import sections
from common.records import Task, read_tasks
from configs import datagen as config_file
from datagen import tasks
from datagen.chat import client
from datagen.chat.client import Failure
from datagen.chat.errors import RunStoppedError
from datagen.chat.store import ChatAnswer
from datagen.config import DatagenConfig
from datagen.writing import filters as task_filters
from datagen.writing import requests as task_requests
from datagen.writing.filters import Filters, FiltersConfig
from datagen.writing.pool import FRUITLESS, Pool, Writing
from datagen.writing.requests import Teacher
from tests.support import teacher
from tests.support.chat_server import ChatServer, openai_reply, question

SEEDS = "datagen/starter/seeds.jsonl"


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


@pytest.mark.parametrize("module", [task_requests, task_filters])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


# What is asked.


def make_teacher(**changes) -> Teacher:
    seeds = read_tasks(SEEDS)
    prompt = tasks.Prompt.read("tasks", tasks.PROMPTS)
    return dataclasses.replace(Teacher(prompt, "text", 12, seeds, 3, 0, 42), **changes)


def test_a_request_shows_seeds_and_the_rules():
    asks = make_teacher()
    examples = asks.examples(7, [])
    request = asks.request(examples)
    assert len({task.id for task in examples}) == 3
    assert request.system == "Your objective is to generate diverse medical-related tasks."
    assert "Write 12 new tasks" in request.user
    assert all(f"\n{rule}. " in request.user for rule in range(1, 16)), "the fifteen rules"
    for task in examples:
        assert (
            f"Instruction: {task.instruction}\nInput: {task.input or '<noinput>'}" in request.user
        )
    assert request.schema is None


def test_examples_depend_on_seed_and_number_alone():
    asks = make_teacher()
    assert asks.examples(7, []) == make_teacher().examples(7, [])
    assert asks.examples(7, []) != asks.examples(8, [])
    assert asks.examples(7, []) != make_teacher(seed=43).examples(7, [])


def test_machine_tasks_take_their_places_once_there_are_any():
    asks = make_teacher(machine_tasks_per_request=2)
    own = [Task(f"m{i}", f"Task {i}.", "", "Chat", "Gout", "Nurse", 1) for i in range(9)]
    count = lambda shown: sum(task in own for task in shown)  # noqa: E731
    assert [count(asks.examples(3, own[:n])) for n in (0, 1, 9)] == [0, 1, 2]
    assert [len(asks.examples(3, own[:n])) for n in (0, 1, 9)] == [5, 5, 5]


# What is kept.


def make_task(instruction="Explain the causes of gout to me.", given="", name="t") -> Task:
    return Task(name, instruction, given, "Chat", "Gout", "Nurse", 1)


OFF = FiltersConfig(0, 0, 0, 0, "", "", "")


@pytest.mark.parametrize(
    "settings, task, reason",
    [
        ({}, make_task("Hi"), ""),
        ({"min_words": 4}, make_task("Define gout now."), "instruction too short"),
        ({"min_words": 4}, make_task("Define gout right now."), ""),
        ({"max_words": 6}, make_task(), "instruction too long"),
        ({"min_input_words": 3}, make_task(given="two words"), "input too short"),
        ({"min_input_words": 3}, make_task(given=""), ""),
        ({"max_input_words": 1}, make_task(given="two words"), "input too long"),
        ({"blacklist": "plot, go to"}, make_task("Plot the fever."), "blacklisted"),
        ({"blacklist": "plot, go to"}, make_task("Should I go to bed?"), "blacklisted"),
        ({"blacklist": "plot, go to"}, make_task("Who plots a trial?"), ""),
        ({"domain_words": True}, make_task(), ""),
        ({"domain_words": True}, make_task("Plan a trip to Rome."), "not of the domain"),
        ({"language": "en"}, make_task(), ""),
        ({"language": "en"}, make_task("Explique las causas de la gota."), "another language"),
    ],
)
def test_filters(tmp_path, settings, task, reason):
    if "domain_words" in settings:
        (tmp_path / "words.txt").write_text("# a comment\ngout\nrheum\n")
        settings = settings | {"domain_words": str(tmp_path / "words.txt")}
    assert Filters(dataclasses.replace(OFF, **settings)).reason(task) == reason


def test_filters_that_let_nothing_in_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="min_words 9"):
        dataclasses.replace(OFF, min_words=9, max_words=8)
    with pytest.raises(ValueError, match="such as en"):
        dataclasses.replace(OFF, language="english")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="no word"):
        Filters(dataclasses.replace(OFF, domain_words=str(tmp_path / "empty.txt")))


def test_the_shipped_words_of_medicine_let_every_seed_in():
    filters = Filters(dataclasses.replace(OFF, domain_words="datagen/prompts/medical_words.txt"))
    assert [task.id for task in read_tasks(SEEDS) if filters.reason(task)] == []
    others = ["Write a poem about autumn.", "Sort these integers.", "Name the capital of Peru."]
    assert all(filters.reason(make_task(text)) for text in others)


def make_pool(**changes) -> Pool:
    config = make_config(**changes)
    return Pool(config.tasks, Filters(config.filters), read_tasks(SEEDS))


def test_near_duplicates_of_seeds_test_sets_and_each_other_go(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"id": "q", "instruction": "Name five signs of sepsis."}')
    pool = make_pool(tasks__against=str(tmp_path / "test.jsonl"))
    seed = read_tasks(SEEDS)[0]
    pool.add(make_task(seed.instruction, name="a"))
    pool.add(make_task("Name four signs of sepsis.", name="b"))
    pool.add(make_task(name="c"))
    pool.add(make_task("Explain the causes of gout to us.", name="d"))
    assert [task.id for task in pool.kept] == ["c"]
    assert [(r["id"], r["nearest"]["id"]) for r in pool.rejected] == [
        ("a", f"seed {seed.id}"),
        ("b", f"{tmp_path / 'test.jsonl'} q"),
        ("d", "c"),
    ]
    assert pool.reasons() == {"near-duplicate": 3}
    pool = make_pool(tasks__threshold=0.0)
    pool.add(make_task(name="c"))
    pool.add(make_task(name="d"))
    assert len(pool.kept) == 2, "0 switches the filter off"


# In what order.


def answer(text: str, finish: str = "stop") -> ChatAnswer:
    return ChatAnswer(text, finish, "stand-in-1", "reply-1", 1, 1)


def replies(count: int) -> list[ChatAnswer]:
    bodies = ({"messages": [{"content": f"new tasks {i}"}]} for i in range(count))
    return [answer(teacher.write_tasks(body)) for body in bodies]


def write(order, given, *, gap=0, **changes) -> Writing:
    """Takes replies in as `order` says, as far as they were asked for."""
    config = make_config(**changes)
    pool = Pool(config.tasks, Filters(config.filters), read_tasks(SEEDS))
    asks = make_teacher(
        machine_tasks_per_request=config.tasks.machine_tasks_per_request,
    )
    writing = Writing(config.tasks, asks, pool, gap=gap)
    writing.asked = {}
    requests, out = writing.requests(), []
    while True:
        while item := next(requests, None):
            index, request = item
            writing.asked[index] = request
            out.append(index)
        if not out:
            return writing
        index = order(out)
        out.remove(index)
        writing.take(index, given[index])


@pytest.mark.parametrize("machine", [0, 2])
def test_the_order_in_which_replies_come_changes_nothing(machine):
    changes = {"tasks__machine_tasks_per_request": machine, "tasks__machine_lag": 3}
    given = replies(40)
    first = write(min, given, **changes)
    last = write(max, given, **changes)
    assert first.pool.kept == last.pool.kept and len(first.pool.kept) == 60
    for index in first.asked.keys() & last.asked.keys():
        assert first.asked[index] == last.asked[index]
    if machine:
        own = {task.instruction for task in first.pool.kept}
        shown = [sum(text in request.user for text in own) for request in first.asked.values()]
        assert shown[:3] == [0, 0, 0] and shown[3:] == [2] * len(shown[3:])


def test_no_more_is_asked_than_should_do():
    writing = write(min, replies(40))
    assert writing.read <= 8, "some 10 of 12 tasks are kept"
    assert writing.unused <= 2
    assert len({task.id for task in writing.pool.kept}) == 60


def test_what_is_no_task_is_kept_with_its_reason():
    flawed = [
        Failure("no answer in 8 attempts"),
        answer("I'd rather not.", "refusal"),
        answer("no list at all"),
        answer(replies(1)[0].text[:-20], "length"),
    ]
    writing = write(min, flawed + replies(40))
    reasons = writing.pool.reasons()
    assert reasons["no reply"] == 1
    assert reasons["the reply ends with refusal"] == 1
    assert reasons["no task"] == 1
    assert reasons["cut at the length limit"] == 1
    assert reasons["near-duplicate"] >= 1 and reasons["difficulty is not 1 to 5"] >= 1
    told = {r["reason"]: r for r in writing.pool.rejected}
    assert told["no reply"]["text"] == "no answer in 8 attempts"
    assert told["no task"]["source"]["request"] == 2


def test_a_teacher_that_says_nothing_new_is_not_paid_for_ever():
    same = [replies(1)[0]] * (FRUITLESS + 20)
    with pytest.raises(ValueError, match=r"gave no task to keep; .* near-duplicate"):
        write(min, same)


def test_offline_what_stands_behind_a_batch_that_has_not_come_is_read_too():
    waiting = [Failure("offline, and the answer is not in the store")] * 50
    writing = write(min, [*waiting, *replies(3), *waiting, *waiting], gap=60)
    assert len(writing.pool.kept) > 20 and writing.missing == 110
    assert "no reply" not in writing.pool.reasons()


# Runs.


def test_a_run_against_a_server_that_fails(server, tmp_path):
    server.faults, server.stall = 0.3, 0.2
    config = make_config(server, teacher__attempts=20, teacher__timeout_seconds=5.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "INITIAL_BACKOFF", 0.01)
        patch.setattr(client, "MAX_BACKOFF", 0.05)
        tasks.run(config, tmp_path, dry_run=False)
    kept = read_tasks(tmp_path / "tasks.jsonl")
    assert len(kept) == 60
    assert {task.input for task in kept} == {"", "DNA of NA, sodium."}
    source = kept[0].source
    assert source["model"] == "stand-in-1" and len(source["seeds"]) == 3
    told = json.loads((tmp_path / "tasks.jsonl.run.json").read_text())
    assert told["counts"]["kept"] == 60
    rejected = read(tmp_path / "rejected.jsonl")
    assert sum(told["counts"]["rejected"].values()) == len(rejected) > 0
    assert told["spent"]["usd"] > 0
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
    told = json.loads((tmp_path / "tasks.jsonl.run.json").read_text())
    assert told["counts"]["replies"] == 2
    # Gone on with, it comes to the same tasks as a run in one go.
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
        ({"tasks__seeds_per_request": 999}, "holds 64 seeds"),
        ({"budget_usd": -1.0}, "budget_usd must be at least 0"),
        ({"budget_usd": float("nan")}, "budget_usd must be at least 0"),
        ({"budget_tokens": -1}, "budget_tokens must be at least 0"),
    ],
)
def test_bad_settings(tmp_path, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        tasks.run(make_config(**changes), tmp_path, dry_run=True)


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
