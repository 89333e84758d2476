"""report.html: what it shows of a run, and that its texts stay texts."""

import re

import pytest
from etils import epath

from alpacare_jax.reporting import run_files, run_page
from tests.support.run_folders import TIME, event, sample, write

HOSTILE = "<script>alert(1)</script>"


def page(folder) -> str:
    return run_page.page(run_files.read(epath.Path(folder)), TIME.format(59))


def test_a_finished_run_shows_everything_and_no_host(tmp_path):
    saves = [event("saved", step, "checkpoint saved") for step in (5, 10, 15, 20)]
    answers = [sample(0, "Gout gout"), sample(20, HOSTILE, finish_reason="length")]
    end = event("finished", 20, "finished in 40s")
    text = page(write(tmp_path / "a&b", events=[*answers, *saves, end]))
    assert "<h1>a&amp;b</h1>" in text and ">finished</span>" in text
    titles = re.findall(r"<figure[^>]*><h3>([^<]*)", text)
    assert [title.partition(",")[0] for title in titles] == [
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Throughput",
        "Real tokens among those computed",
    ]
    assert "4 checkpoints saved, from step 5 on" in text and "finished in 40s" in text
    assert text.index("step 20 (cut)") < text.index("A joint disease.") < text.index("Gout gout")
    assert "&lt;script&gt;" in text and HOSTILE not in text
    assert "optimizer.learning_rate" in text and "0.10.2" in text
    assert "a-host-of-ours" not in text
    assert 'http-equiv="refresh"' not in text and "<progress" not in text
    assert not re.search(r"(src|href)=", text), "it fetches nothing"


def test_a_running_page_reloads_and_shows_how_far_it_is(tmp_path):
    text = page(write(tmp_path / "a", steps=12))
    assert ">running</span>" in text and "step 12 of 20, as of 2026-11-27 04:30:59 UTC" in text
    assert '<meta http-equiv="refresh" content="60">' in text
    assert "<progress max=20 value=12>" in text


def test_what_ended_a_run_is_on_top(tmp_path):
    failure = event("failed", 12, "loss nan at step 12 & no more")
    text = page(write(tmp_path / "a", steps=12, events=[failure]))
    assert "<p class=warning>loss nan at step 12 &amp; no more</p>" in text
    assert ">failed at step 12</span>" in text and "refresh" not in text.partition("<body>")[0]
    stopped = event("stopped", 12, "stopped by SIGTERM; checkpoint saved at step 12")
    text = page(write(tmp_path / "b", steps=12, events=[failure, stopped]))
    assert "<p class=warning>" not in text and "stopped by SIGTERM" in text


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_has_just_started(tmp_path, steps):
    folder = write(tmp_path / "a", steps=steps)
    if not steps:
        (folder / "metrics.jsonl").write_text("")
    assert ("No step has ended yet." in page(folder)) == (steps == 0)


def test_a_resume_is_marked_and_wide_norms_are_on_a_logarithmic_axis(tmp_path):
    folder = write(tmp_path / "a", events=[event("resume", 10, "resumed", num_steps=20)])
    lines = (
        (folder / "metrics.jsonl").read_text().replace('"grad_norm": 1.5', '"grad_norm": 900', 1)
    )
    (folder / "metrics.jsonl").write_text(lines)
    drawings = {d.title: d for d in run_page.drawings(run_files.read(epath.Path(folder)))}
    norms = drawings["Gradient norm, before clipping"]
    labels = [shape.text for shape in norms.shapes if hasattr(shape, "text")]
    assert {"1", "10", "100", "1,000"} <= {*labels}
    assert any("resumed from step 10" in getattr(shape, "tip", "") for shape in norms.shapes)
