"""Comparisons: both orders, the side of a verdict, and the counts of a run."""

import pytest

from datagen.chat.replies import ChatAnswer
from evaluation.inputs.benchmarks import Item
from evaluation.inputs.outputs import ModelOutput
from evaluation.judgements.verdicts import MODEL_FIRST, REFERENCE_FIRST, Verdict
from evaluation.judging import comparisons
from evaluation.judging.comparisons import Reply
from evaluation.judging.judges import Judge

ITEMS = [Item(name, "heart", f"Why {name}?", "") for name in ("a", "b")]


def outputs(generator):
    return [ModelOutput("heart", item.id, generator, f"{generator} on {item.id}") for item in ITEMS]


def pairs():
    judge = Judge.load("alpacare")
    return comparisons.pair([judge], ITEMS, [outputs("ours")], [outputs("gpt-4")])


def answer(text, finish_reason="stop"):
    return ChatAnswer(text, finish_reason, "served-model", "id", 7, 2)


def test_every_item_is_compared_in_both_orders():
    compared = pairs()
    assert [(c.item.id, c.order) for c in compared] == [
        ("a", MODEL_FIRST),
        ("a", REFERENCE_FIRST),
        ("b", MODEL_FIRST),
        ("b", REFERENCE_FIRST),
    ]
    for comparison in compared[:2]:
        user = comparison.request().user
        model_is_first = user.index("ours on a") < user.index("gpt-4 on a")
        assert model_is_first == (comparison.order == MODEL_FIRST)


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("Output (a)", [Verdict.MODEL, Verdict.REFERENCE]),
        ("Output (b)", [Verdict.REFERENCE, Verdict.MODEL]),
        ("Tie", [Verdict.TIE, Verdict.TIE]),
        ("Hm.", [Verdict.INVALID, Verdict.INVALID]),
    ],
)
def test_the_order_decides_whom_a_preference_is_for(text, verdicts):
    assert [comparison.verdict(answer(text)) for comparison in pairs()[:2]] == verdicts


def test_a_judgement_is_a_plain_record():
    record = comparisons.judgement(pairs()[0], Reply(answer("Tie"), 1, Verdict.TIE), "gpt-6")
    assert (record["judge"], record["verdict"], record["raw"]) == ("alpacare/gpt-6", "tie", "Tie")
    assert record["usage"] == {"input_tokens": 7, "output_tokens": 2}
    assert comparisons.judgement(pairs()[0], Reply(), "gpt-6")["usage"] is None


def test_invalid_verdicts_are_counted_by_their_reason():
    replies = [
        Reply(answer("Tie"), 1, Verdict.TIE),
        Reply(answer("Hm."), 3),
        Reply(answer("Out", "length"), 1),
        Reply(failure="server error"),
    ]
    counts = comparisons.count(pairs(), replies)
    assert counts["verdicts"] == {"alpacare": {"invalid": 3, "tie": 1}}
    assert list(counts["invalid"].values()) == [1, 1, 0, 1]
    assert counts["asked_again"] == 1
    counts |= {"items": 2, "cut_references": {"gpt-4": 1, "x": 0}}
    text = comparisons.summary(counts | {"empty_answers": {"7b": 1, "gpt-4": 0}})
    assert "alpacare: 3 invalid, 1 tie" in text
    assert "1 asked more than once; invalid: 1 no verdict, 1 cut at max_tokens" in text
    assert text.endswith(
        "reference gpt-4: 1 of 2 answers appear truncated\n"
        "7b: 1 of 2 answers are empty, and judged as they are"
    )
