"""Single questions: chosen by id or by a seed, with every answer and its points."""

import pytest

from evaluation.judgements import reading, workdirs
from evaluation.reporting.content import ReportContent
from evaluation.reporting.sections import questions
from evaluation.reporting.systems import System
from tests.support import judge_workdirs

SYSTEMS = {name: System(name) for name in judge_workdirs.SET["systems"]}


@pytest.fixture(scope="module")
def read():
    return judge_workdirs.read_set()


def test_by_id(read):
    verdicts, _, texts = read
    assert questions.choose(verdicts, texts, ["l2", "heart/h1"], 5, 0) == [
        ("lung", 2),
        ("heart", 1),
    ]
    with pytest.raises(ValueError, match="question 'h99' was not judged"):
        questions.choose(verdicts, texts, ["h99"], 5, 0)


def test_an_id_of_several_test_sets(tmp_path):
    folder = judge_workdirs.write(tmp_path, lambda _: "tie", items={"a": ["1"], "b": ["1"]})
    verdicts, _ = reading.read([folder])
    texts = workdirs.read([folder], verdicts)
    with pytest.raises(ValueError, match="write BENCHMARK/ID"):
        questions.choose(verdicts, texts, ["1"], 1, 0)
    assert questions.choose(verdicts, texts, ["b/1"], 1, 0) == [("b", 0)]


def test_at_random_with_a_seed(read):
    verdicts, _, texts = read
    drawn = [tuple(questions.choose(verdicts, texts, (), 3, seed)) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    assert len(set(drawn[0])) == 3


def test_a_question_figure_shows_every_answer_and_score(tmp_path):
    """Ours wins in one order and ties in the other: 0.75 of one comparison with each reference."""

    def verdict(record):
        return "model" if record["order"] == "model_first" else "tie"

    folder = judge_workdirs.write(
        tmp_path, verdict, items={"heart": ["1", "2"]}, references=["gpt-4", "claude-2"]
    )
    verdicts, _ = reading.read([folder])
    texts = workdirs.read([folder], verdicts)
    (shown,) = questions.collect(verdicts, texts, {"ours": System("Ours")}, [("heart", 1)])
    assert [(a.name, a.text, a.note) for a in shown.answers] == [
        ("Ours", "ours on 2.", "j: 1.5 of 2"),
        ("claude-2 (reference)", "claude-2 on 2.", ""),
        ("gpt-4 (reference)", "gpt-4 on 2.", ""),
    ]
    content = ReportContent(None, {}, [shown])
    ((_, figure),) = questions.figures(content)
    titles = [drawing.title for drawing in figure.drawings]
    assert titles[:2] == ["Question 2 of heart", "Ours"]
    (table,) = questions.tables(content)
    assert table.rows[0] == ["Ours", "ours on 2.", "j: 1.5 of 2"]
    assert table.caption.endswith("What of 2?")


def test_a_long_answer_is_whole_in_the_table_and_cut_in_the_figure(read):
    verdicts, _, texts = read
    (shown,) = questions.collect(verdicts, texts, SYSTEMS, [("heart", 1)])
    longer = shown.answers[0].text * 30
    assert len(longer) > questions.MAX_CHARACTERS
    cut = questions._cut(longer)
    assert cut.endswith(f"({len(longer) - questions.MAX_CHARACTERS:,} more characters)")
