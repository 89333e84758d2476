"""How it was judged: from run.json, with the prompts, and what is unknown is named."""

import html
import json

from evaluation.judging.judges import Judge
from evaluation.reporting import judge_settings
from tests.support import judge_workdirs


def write(folder, record):
    judge_workdirs.write(folder, lambda _: "tie", items={"b": ["1"]})
    (folder / "run.json").write_text(json.dumps(record))
    return folder


CHAT = {"provider": "openai", "model": "sol", "temperature": None, "max_tokens": 9, "batch": False}
RECORD = {
    "config": {"chat": CHAT | {"base_url": "http://10.0.0.1/v1"}, "reasks": 2},
    "benchmark": "b",
    "prompt_versions": {"mine": "mine@1", "alpacare": Judge.load("alpacare").version},
    "prompts": {"mine@1": {"system": "", "user": "Compare <a> & b."}},
    "start": "2026-11-27T10:00:00+00:00",
    "git_commit": "abc",
    "packages": {"openai": "2.0", "anthropic": None, "jax": "1"},
}


def test_settings_and_prompts_of_a_workdir(tmp_path):
    (run,) = judge_settings.read([write(tmp_path / "luna", RECORD)])
    assert run.source == "luna"
    assert run.settings["model"] == "sol"
    assert run.settings["temperature"] == "not sent"
    assert run.settings["openai"] == "2.0"
    assert not {"base_url", "anthropic", "jax"} & run.settings.keys()
    page = judge_settings.html([run])
    assert "Compare &lt;a&gt; &amp; b." in page
    assert "10.0.0.1" not in page, "no address of the group's own machines"
    shipped = Judge.load("alpacare").prompt.user.splitlines()[0]
    assert html.escape(shipped) in page, "a workdir from before prompts were recorded"


def test_what_is_unknown_is_named(tmp_path):
    judge_workdirs.write(tmp_path / "old", lambda _: "tie", items={"b": ["1"]})
    mine = write(tmp_path / "mine", RECORD | {"prompts": {}})
    page = judge_settings.html(judge_settings.read([tmp_path / "old", mine]))
    assert "nothing is known of its settings" in page
    assert "Its text was not recorded" in page
