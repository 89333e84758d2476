"""The automatic signals in a report."""

import pytest

from evaluation.judging import reading, workdirs
from evaluation.scoring.signals import benchmark_signals
from tests.support import judge_workdirs


def test_every_system_and_reference_has_signals(tmp_path):
    text = {"ours": "The heart pumps blood.", "gpt-4": "The heart pumps blood.", "theirs": "No."}
    judge_workdirs.write(
        tmp_path,
        lambda record: "tie",
        items={"b": ["x", "y"]},
        systems=["ours", "theirs"],
        text=lambda generator, _: text[generator],
    )
    found, _ = reading.read([tmp_path])
    signals = benchmark_signals(found, workdirs.read([tmp_path], found), "b")
    assert list(signals) == ["ours", "theirs", "gpt-4"]
    assert signals["gpt-4"].is_reference
    assert signals["gpt-4"].rouge == {}
    assert signals["ours"].rouge["gpt-4"]["rougeL"] == pytest.approx(1.0)
    assert signals["theirs"].rouge["gpt-4"]["rouge1"] == 0.0
    assert (signals["ours"].texts.outputs, signals["ours"].texts.mean_words) == (2, 4.0)
