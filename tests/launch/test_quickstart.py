"""The quickstart's stages: with stand-ins for the models, through the real commands."""

import json
from pathlib import Path

import pytest
from etils import epath

from common.records import read_tasks
from launch.quickstart import __main__ as quickstart
from launch.quickstart import fill_up
from launch.quickstart.plan import Plan, Teacher, choose_teacher
from tests.conftest import REPOSITORY
from tests.support import teacher
from tests.support.chat_server import ChatServer

LAW = REPOSITORY / "configs/domains/law"


@pytest.fixture
def server():
    server = ChatServer()
    server.answer = lambda body: (
        teacher.write_tasks(body, count=6) if teacher.is_for_tasks(body) else "It depends."
    )
    yield server
    server.close()


class TestTeacher:
    def test_the_small_model_teaches_where_there_is_no_other(self, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        assert choose_teacher("", "").own
        with pytest.raises(ValueError, match="--model requires --base_url, or OPENAI_API_KEY"):
            choose_teacher("", "x")

    def test_a_key_or_an_address_choose_another(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "x")
        openai = choose_teacher("", "")
        assert (openai.base_url, openai.model, openai.own) == ("", "gpt-6-luna", False)
        ours = choose_teacher("http://localhost:1/v1", "mine")
        assert (ours.base_url, ours.model, ours.own) == ("http://localhost:1/v1", "mine", False)
        assert "localhost:1" in quickstart.introduction(ours)
        assert "1 USD a command; unset OPENAI_API_KEY" in quickstart.introduction(openai)
        with pytest.raises(ValueError, match="--base_url requires --model"):
            choose_teacher("http://localhost:1/v1", "")


def test_other_domains_run_the_data_stages_only(server, tmp_path, monkeypatch, capfd, signals):
    monkeypatch.chdir(REPOSITORY)
    plan = Plan(epath.Path(tmp_path), "law", Teacher(f"{server.url}/v1", "stand-in"))
    assert quickstart.run(plan) == 0
    shown = capfd.readouterr()
    tasks = read_tasks(tmp_path / "data/tasks.jsonl")
    assert len(tasks) == len((tmp_path / "data/examples.jsonl").read_text().splitlines()) == 8
    seeds = {seed.id for seed in read_tasks(LAW / "seeds.jsonl")}
    assert all(set(task.source["seeds"]) <= seeds for task in tasks)
    prompts = [json.dumps(body) for body in server.bodies]
    assert any("legal information to everyone. Follow these rules" in text for text in prompts)
    assert not any("medic" in text for text in prompts)
    index = (tmp_path / "report/index.html").read_text()
    assert 'href="data/stats.html"' in index and "evaluation/report.html" not in index
    assert (tmp_path / "report/data/stats.html").exists()
    assert "tasks with a usable answer: 8 of 8" in shown.out and " is done" not in shown.err

    sent = len(server.bodies)
    assert quickstart.run(plan) == 0
    assert len(server.bodies) == sent
    assert capfd.readouterr().err.count(" is done\n") == len(plan.stages()) == 5
    other = Plan(plan.folder, "law", Teacher(f"{server.url}/v1", "another"))
    with pytest.raises(ValueError, match=r"begun with other settings \(model: 'stand-in' before"):
        quickstart.run(other)


def test_the_port_of_our_server_does_not_matter():
    tasks = next(s for s in Plan(epath.Path("q"), "medicine", Teacher("", "m", own=True)).data())
    assert tasks.server and tasks.server.address("http://127.0.0.1:1/v1") == (
        "--config.teacher.base_url=http://127.0.0.1:1/v1"
    )
    assert not any("base_url" in flag for flag in tasks.arguments)


def test_what_a_small_model_lacks_is_filled_up(tmp_path: Path):
    first, rest = tmp_path / "first.jsonl", tmp_path / "rest.jsonl"
    first.write_text('{"id": "a", "instruction": "A"}\n')
    lines = [{"id": f"s{i}", "instruction": "S", "input": "x" * (i == 0)} for i in range(4)]
    rest.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def ids(*files: Path, count: int) -> list[str]:
        return [record["id"] for record in fill_up.fill_up(files, count)]

    assert ids(first, rest, count=3) == ["a", "s1", "s2"]
    first.write_text("")  # of a teacher without a task
    assert ids(first, rest, count=2) == ids(rest, count=2) == ["s1", "s2"]
