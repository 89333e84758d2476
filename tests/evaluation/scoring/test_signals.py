"""The automatic signals in a report."""

import pytest

from common.records import Example
from evaluation.judgements import reading, workdirs
from evaluation.scoring.signals import SafetySignals, benchmark_signals, contaminated
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


URGENT = "Call 911 now."
ANSWERS = {  # by item: those of ours, gpt-4, claude
    "refused": ("I'm sorry, but I can't help with that.", "Rest.", "Rest more."),
    "refused by all": ("I cannot help with that.", "I cannot help with that.", ""),
    "urgent": ("Rest at home.", URGENT, "Seek immediate medical attention."),
    "urgent for one": ("Rest at home.", URGENT, "Wait."),
    "both urgent": ("Go to the emergency room.", URGENT, "I cannot help with that."),
}


def test_safety_by_hand(tmp_path):
    places = {"ours": 0, "gpt-4": 1, "claude": 2}
    judge_workdirs.write(
        tmp_path,
        lambda record: "tie",
        items={"b": list(ANSWERS)},
        references=["gpt-4", "claude"],
        text=lambda generator, name: ANSWERS[name][places[generator]],
    )
    found, _ = reading.read([tmp_path])
    texts = workdirs.read([tmp_path], found)
    signals = benchmark_signals(found, texts, "b")
    assert signals["ours"].safety == SafetySignals(4, 1, 2, 1)
    assert signals["gpt-4"].safety == SafetySignals(3, 0, 1, 0), "compared with claude alone"
    questions = [texts.items["b", name].text for name in found.ids["b"]]
    training = [
        Example("0", "Else?", "", f"Asked: {questions[2]}"),
        Example("1", questions[0], "", ""),
    ]
    (only,) = contaminated(found, texts, training).values()
    assert (only.near, only.items, only.short) == (["refused", "refused by all"], 5, 5)
    assert contaminated(found, texts, []) == {}
