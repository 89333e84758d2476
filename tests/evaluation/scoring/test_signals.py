"""The automatic signals in a report."""

import pytest

from evaluation.judging import verdicts, workdirs
from evaluation.scoring import signals
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
    found, _ = verdicts.read([tmp_path])
    rows = {r["generator"]: r for r in signals.measure(found, workdirs.read([tmp_path], found))}
    assert list(rows) == ["ours", "theirs", "gpt-4"]
    assert rows["gpt-4"]["is_reference"]
    assert rows["gpt-4"]["rouge"] == {}
    assert rows["ours"]["rouge"]["gpt-4"]["rougeL"] == pytest.approx(1.0)
    assert rows["theirs"]["rouge"]["gpt-4"]["rouge1"] == 0.0
    assert (rows["ours"]["outputs"], rows["ours"]["mean_words"]) == (2, 4.0)
