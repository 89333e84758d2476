"""The quickstart's stages: with stand-ins for the models, through the real commands."""

import json
import sys
from pathlib import Path

import pytest

from common import provenance
from common.records import read_tasks
from launch.lib import stages
from launch.lib.stages import Stage
from launch.quickstart import __main__ as quickstart
from launch.quickstart import plan, summary
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


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class TestTeacher:
    def test_the_small_model_teaches_where_there_is_no_other(self, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        assert plan.choose_teacher("", "").own
        with pytest.raises(ValueError, match="--model requires --base_url, or OPENAI_API_KEY"):
            plan.choose_teacher("", "x")

    def test_a_key_or_an_address_choose_another(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "x")
        openai = plan.choose_teacher("", "")
        assert (openai.base_url, openai.model, openai.own) == ("", "gpt-6-luna", False)
        ours = plan.choose_teacher("http://localhost:1/v1", "mine")
        assert (ours.base_url, ours.model, ours.own) == ("http://localhost:1/v1", "mine", False)
        assert "localhost:1" in quickstart.introduction(ours)
        assert "1 USD a command; unset OPENAI_API_KEY" in quickstart.introduction(openai)
        with pytest.raises(ValueError, match="--base_url requires --model"):
            plan.choose_teacher("http://localhost:1/v1", "")


def test_another_domain_runs_up_to_its_data(server, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)
    run = quickstart.Quickstart(tmp_path, "law")
    asked = plan.Teacher(f"{server.url}/v1", "stand-in")
    run.require_same(asked)
    run.run(asked)
    shown = summary.write(tmp_path, "law")
    tasks, answered = (
        read_tasks(tmp_path / "data/tasks.jsonl"),
        read(tmp_path / "data/examples.jsonl"),
    )
    assert len(tasks) == len(answered) == 8
    seeds = {seed.id for seed in read_tasks(LAW / "seeds.jsonl")}
    assert all(set(task.source["seeds"]) <= seeds for task in tasks)
    prompts = [json.dumps(body) for body in server.bodies]
    assert any("legal information to everyone. Follow these rules" in text for text in prompts)
    assert not any("medic" in text for text in prompts)
    index = (tmp_path / "report/index.html").read_text()
    assert 'href="data/stats.html"' in index and "evaluation/report.html" not in index
    assert (tmp_path / "report/data/stats.html").exists()
    assert "tasks with a usable answer: 8 of 8" in shown

    before, sent = capfd.readouterr(), len(server.bodies)
    assert before.err.count("done before") == 0
    run.run(asked)
    assert len(server.bodies) == sent
    assert capfd.readouterr().err.count("done before") == 5
    with pytest.raises(ValueError, match=r"begun with other settings \(model: 'stand-in' before"):
        run.require_same(plan.Teacher(f"{server.url}/v1", "another"))


def test_what_a_small_model_lacks_is_filled_up(tmp_path, capsys):
    first, rest, output = (tmp_path / f"{name}.jsonl" for name in ("first", "rest", "output"))
    first.write_text('{"id": "a", "instruction": "A"}\n')
    lines = [{"id": f"s{i}", "instruction": "S", "input": "x" * (i == 0)} for i in range(4)]
    rest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan.fill_up(output, first, rest, 3)
    assert [record["id"] for record in read(output)] == ["a", "s1", "s2"]
    assert f"1 new, 2 of {rest}" in capsys.readouterr().err
    first.write_text("")  # a teacher without a task
    plan.fill_up(output, first, rest, 2)
    assert [record["id"] for record in read(output)] == ["s1", "s2"]


class TestStage:
    @pytest.fixture
    def copy(self, tmp_path) -> Stage:
        (tmp_path / "in").write_text("x")
        program = (
            "import shutil, sys; print('copying', file=sys.stderr); shutil.copy(*sys.argv[1:])"
        )
        paths = (tmp_path / "in", tmp_path / "out")
        return Stage("copy", "Copy", ["-c", program, *map(str, paths)], paths[:1], paths[1:])

    def test_it_is_done_by_content(self, copy, tmp_path, capsys):
        folder = tmp_path / "stages"
        copy.run(folder)
        assert "  copying" in capsys.readouterr().err and copy.is_done(folder)
        (tmp_path / "out").write_text("y")
        assert not copy.is_done(folder)
        copy.run(folder)
        (tmp_path / "in").write_text("z")
        assert not copy.is_done(folder)
        copy.run(folder)
        assert (tmp_path / "out").read_text() == "z"
        (folder / "copy.json").write_text("{")
        assert not copy.is_done(folder)

    def test_the_port_of_our_server_does_not_matter(self):
        def state(port: int) -> dict:
            return Stage("s", "", [f"--config.chat.base_url=http://127.0.0.1:{port}/v1"]).state()

        assert state(1) == state(2)
        assert state(1) != Stage("s", "", ["--config.chat.base_url=http://other:1/v1"]).state()

    def test_a_failure_is_one_line_and_no_record(self, tmp_path, capsys):
        program = "import sys; print('error: no luck; try again', file=sys.stderr); sys.exit(1)"
        stage = Stage("luck", "Luck", ["-c", program])
        with pytest.raises(ChildProcessError, match="luck: no luck; try again"):
            stage.run(tmp_path)
        assert "\nerror:" not in capsys.readouterr().err and not list(tmp_path.iterdir())
        Stage("luck", "Luck", ["-c", program], may_find_nothing="no luck").run(tmp_path)
        assert provenance.read_json(tmp_path / "luck.json")["writes"] == {}

    def test_a_command_that_crashes(self):
        assert stages.run([sys.executable, "-c", "import os; os._exit(9)"]) == (9, "")
