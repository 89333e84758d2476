"""Judgements of other tools: their own win rates come out, and no fault passes in silence."""

import json

import numpy as np
import pytest

from common.sections import UsageError
from evaluation.judgements import foreign, reading, workdirs
from evaluation.judgements.verdicts import Matchup, VerdictCode
from evaluation.scoring import score
from evaluation.scoring.measurement import measure
from tests.support import judge_workdirs
from tests.support.judge_workdirs import write_lines

SMALLEST = {"id": "7", "benchmark": "heart", "generator": "ours", "reference": "gpt-4"}
SMALLEST |= {"judge": "gpt-5", "verdict": "model"}


def read(*sources, baseline=""):
    return reading.read(foreign.load(list(map(str, sources)), baseline))[0]


def error(*sources, **settings) -> str:
    with pytest.raises(ValueError) as caught:
        read(*sources, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


def results(*sources, baseline=""):
    loaded = foreign.load(list(map(str, sources)), baseline)
    found, _ = reading.read(loaded)
    return measure(found, None, workdirs.read(loaded, found), seed=0)


def annotation(number: int, preference: object, **fields: object) -> dict:
    return {
        "instruction": f"What of {number}?",
        "output_1": f"Reference on {number}.",
        "generator_1": "davinci",
        "dataset": "helpful",
        "output_2": f"Ours on {number}.",
        "generator_2": "ours-7b",
        "annotator": "gpt4_fn",
        "preference": preference,
    } | fields


def write_json(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=2))
    return path


def game(number: int, first: str | None, second: str | None, **fields: object) -> dict:
    return {
        "question_id": number,
        "model_1": "ours-7b",
        "model_2": "gpt-3.5-turbo",
        "g1_winner": first,
        "g2_winner": second,
        "judge": ["gpt-4", "pair-v2"],
        "g1_user_prompt": "…",
        "g1_judgment": "[[A]]",
        "g2_user_prompt": "…",
        "g2_judgment": "[[B]]",
        "turn": 1,
        "tstamp": 1.5,
    } | fields


def test_the_smallest_judgement(tmp_path):
    found = read(write_lines(tmp_path / "mine.jsonl", [SMALLEST]))
    key = Matchup("gpt-5 (one order)", "heart", "gpt-4", "ours")
    assert found.tables[key].tolist() == [[VerdictCode.MODEL, VerdictCode.MISSING]]
    assert (found.one_order, found.unordered) == ({"gpt-5 (one order)"}, {key})
    assert found.prompts == {"gpt-5 (one order)": "not given"}


def test_both_orders_are_not_marked_and_orders_may_be_in_two_files(tmp_path):
    files = [
        write_lines(tmp_path / f"{order}.jsonl", [SMALLEST | {"order": order}])
        for order in ("model_first", "reference_first")
    ]
    found = read(*files)
    assert found.names("judge") == ["gpt-5"]
    assert not found.one_order
    (table,) = read(files[1]).tables.values()
    assert table.tolist() == [[VerdictCode.MISSING, VerdictCode.MODEL]]


def test_a_workdirs_judgements_by_their_file_or_as_lines_of_their_own(tmp_path):
    folder = judge_workdirs.write(tmp_path, lambda _: "tie", items={"heart": ["1", "2"]})
    assert foreign.load([f"{folder}/judgements.jsonl"]) == [folder]
    (folder / "items.jsonl").unlink()
    found = read(folder / "judgements.jsonl")
    assert found.count == 4
    assert found.foreign[0] == ["j says tie"] * 4


def test_everything_that_a_record_may_hold(tmp_path):
    record = SMALLEST | {"id": None, "instruction": "Why?", "input": "N/A", "topic": "gout"}
    record |= {"difficulty": 3, "output": "So.", "reference_output": "", "raw": "A"}
    record |= {"verdict": None, "score": 0.25, "order": "reference_first", "prompt_version": "p@1"}
    other = record | {"id": None, "instruction": "Why not?", "score": 1}
    (source,) = foreign.load([str(write_lines(tmp_path / "x.jsonl", [record, other, other][:2]))])
    one, two = source.judgements
    assert (one.id, two.id) == ("0", "1")
    assert (one.verdict, one.score, two.verdict, two.score) == ("reference", 0.25, "model", None)
    assert [(i.instruction, i.input, i.topic, i.difficulty) for i in source.items] == [
        ("Why?", "", "gout", 3),
        ("Why not?", "", "gout", 3),
    ]
    assert {(o.generator, o.output) for o in source.outputs} == {("ours", "So."), ("gpt-4", "")}


@pytest.mark.parametrize("name", ["x.json", "x.csv", "x.jsonl.gz", "x"])
def test_any_form_of_data_file(tmp_path, name):
    path = tmp_path / name
    if name == "x.csv":
        text = "id,generator,reference,judge,score\n7,ours,gpt-4,j,0.9\n8,ours,gpt-4,j,1\n"
        path.write_text(text)
    else:
        write_json(path, [SMALLEST | {"id": 7}, SMALLEST | {"id": 8}])
    assert read(f"lung={path}").ids == {"lung": ["7", "8"]}


# The formula of alpaca_eval's describe_head2head, written out.
def alpaca_rate(preferences: list[float | None]) -> float:
    known = [1.5 if p == 0 else p for p in preferences if p is not None]
    return 100 * float(np.mean([p - 1 for p in known]))


@pytest.mark.parametrize(
    "preferences",
    [
        [1, 2, 2, 1, 2, 2],
        [1.0, 2.0, 1.5, None, 2.0, 0],
        [1.9900139974, 1.4593660117, 1.0000012, 2.0, None, 1.5],
    ],
    ids=["old", "with ties", "weighted"],
)
def test_the_win_rate_of_alpaca_eval(tmp_path, preferences):
    records = [annotation(i, preference) for i, preference in enumerate(preferences)]
    path = write_json(tmp_path / "annotations.json", records)
    measured = results(path)
    (rate,) = measured.rates.values()
    assert 100 * rate.rate == pytest.approx(alpaca_rate(preferences), rel=1e-14)
    assert (rate.items, rate.valid) == (6, 6 - preferences.count(None))
    assert 0 <= rate.low < rate.rate < rate.high <= 1
    assert list(measured.judges) == ["gpt4_fn (one order)"]
    assert measured.benchmarks["alpaca_eval"].labels["topic"] == {"helpful": 6}
    assert measured.lengths["gpt4_fn (one order)", "alpaca_eval"][None].strata
    assert set(measured.signals["alpaca_eval"]) == {"ours-7b", "davinci"}


def test_annotations_of_every_version(tmp_path):
    """Of May 2023 without generators, with completions as text, as JSON, with log-probabilities."""
    early = {"instruction": "Why?", "output_1": "a", "output_2": "b", "preference": 2}
    early |= {"annotator": "claude"}
    old = write_json(tmp_path / "results" / "alpaca-7b" / "claude" / "annotations.json", [early])
    new = [
        annotation(0, 1.0, raw_completion={"concise_explanation": "So.", "ordered_models": []}),
        annotation(1, 1.0, raw_completion={"text": "m", "logprobs": {"content": []}}),
        annotation(2, 1.0, preference_raw_completion="M", preference_version="alpaca_eval==0.6.6"),
        annotation(3, 1.0, input="Here."),
    ]
    path = write_json(tmp_path / "annotations.json", new)
    one, two = foreign.load([str(old.parent), str(path)])
    assert (one.judgements[0].generator, one.judgements[0].reference) == ("alpaca-7b", "reference")
    assert [judged.raw for judged in two.judgements] == [
        '{"concise_explanation": "So.", "ordered_models": []}',
        "m",
        "M",
        "",
    ]
    assert [judged.id for judged in (*one.judgements, *two.judgements)] == ["0", "1", "2", "3", "4"]
    assert two.items[3].text == "What of 3?\n\nHere."


def test_a_leaderboard_has_its_questions_once(tmp_path):
    for system, numbers in (("one", [0, 1, 2]), ("two", [2, 1])):
        records = [annotation(i, 2, generator_2=system) for i in numbers]
        write_json(tmp_path / system / "annotations.json", records)
    found = read(tmp_path / "one", tmp_path / "two")
    assert found.ids == {"alpaca_eval": ["0", "1", "2"]}
    judged = [len(found.judged(key)) for key in found.tables]
    assert judged == [3, 2]


# The loop of FastChat's display_result_pairwise, written out.
def fastchat_rates(games: list[dict]) -> tuple[float, float, float]:
    kept = [g for g in games if "error" not in (g["g1_winner"], g["g2_winner"])]
    won = lost = 0
    for g in kept:
        if g["g1_winner"] == g["g2_winner"] != "tie":
            winner = g[g["g1_winner"]]
            won, lost = won + (winner == "ours-7b"), lost + (winner != "ours-7b")
    n = len(kept)
    return won / n, lost / n, (won + 0.5 * (n - won - lost)) / n


GAMES = [
    game(81, "model_1", "model_1"),
    game(81, "model_1", "tie", turn=2),
    game(82, "tie", "tie"),
    game(83, "model_2", "model_2"),
    game(84, "model_1", "model_2"),
    game(85, "error", "model_1"),
    game(86, "model_1", "model_1", judge=["gpt-4", "pair-math-v1"]),
]


@pytest.mark.parametrize("turned", [False, True], ids=["as FastChat", "baseline first"])
def test_the_rates_of_fastchat(tmp_path, turned):
    games = GAMES
    if turned:
        other = {"model_1": "model_2", "model_2": "model_1"}
        games = [
            g
            | {"model_1": g["model_2"], "model_2": g["model_1"]}
            | {name: other.get(g[name], g[name]) for name in ("g1_winner", "g2_winner")}
            for g in GAMES
        ]
    path = write_lines(tmp_path / "gpt-4_pair.jsonl", games)
    measured = results(path, baseline="gpt-3.5-turbo")
    ((key, position),) = measured.positions.items()
    assert key == ("gpt-4", "mt_bench", "gpt-3.5-turbo", "ours-7b")
    assert tuple(position.agreed_rates.values()) == fastchat_rates(games)
    assert measured.rates[key].rate == pytest.approx((1 + 0.75 + 0.5 + 0 + 0.5 + 1) / 6)
    assert measured.benchmarks["mt_bench"].items == 7
    assert (position.first, position.second) == ((4, 6) if turned else (6, 4))
    assert measured.lengths == {}
    assert measured.signals == {"mt_bench": {}}


@pytest.mark.parametrize(
    ("record", "table"),
    [
        (game(1, "model_1", None), [VerdictCode.MODEL, VerdictCode.MISSING]),
        (game(1, None, "model_1"), [VerdictCode.MISSING, VerdictCode.MODEL]),
        (game(1, "tie", "tie", m1_score=7, m2_score=7), [VerdictCode.TIE, VerdictCode.MISSING]),
        (
            {"question_id": 1, "model_1": "ours-7b", "model_2": "b", "winner": "model_2"}
            | {"judge": "gpt-4"},
            [VerdictCode.REFERENCE, VerdictCode.MISSING],
        ),
    ],
    ids=["first game", "second game", "graded alone", "one winner"],
)
def test_pairs_in_one_order(tmp_path, record, table):
    found = read(write_lines(tmp_path / "pair.jsonl", [record]))
    assert found.names("judge") == ["gpt-4 (one order)"]
    (only,) = found.tables.values()
    assert only.tolist() == [table]


def test_pairs_of_all_models_need_a_baseline(tmp_path):
    names = ["a", "b", "c", "d"]
    games = [
        game(81, "model_1", "model_1", model_1=one, model_2=two)
        for one in names
        for two in names
        if one < two
    ]
    path = write_lines(tmp_path / "pair.jsonl", games)
    with pytest.raises(UsageError, match=r"all of the 6 pairs.*--baseline=MODEL: a, b, c, d"):
        read(path)
    with pytest.raises(UsageError, match="no pair with 'e'"):
        read(path, baseline="e")
    found = read(path, baseline="b")
    won = {key.generator: table.tolist()[0][0] for key, table in found.tables.items()}
    assert won == {"a": VerdictCode.MODEL, "c": VerdictCode.REFERENCE, "d": VerdictCode.REFERENCE}


def test_questions_and_answers_beside_fastchats_pairs(tmp_path):
    folder = tmp_path / "cardio_bench"
    path = write_lines(folder / "model_judgment" / "gpt-4_pair.jsonl", GAMES)
    question = {"question_id": 81, "category": "writing", "turns": ["Why?", "And then?"]}
    write_lines(folder / "question.jsonl", [question])
    answer = {"question_id": 81, "choices": [{"index": 0, "turns": ["So.", "That."]}]}
    write_lines(folder / "model_answer" / "ours-7b.jsonl", [answer, answer | {"question_id": 99}])
    (source,) = foreign.load([str(path)])
    assert [(i.benchmark, i.id, i.instruction, i.topic) for i in source.items] == [
        ("cardio_bench", "81-1", "Why?", "writing"),
        ("cardio_bench", "81-2", "And then?", "writing"),
    ]
    assert [(o.id, o.generator, o.output) for o in source.outputs] == [
        ("81-1", "ours-7b", "So."),
        ("81-2", "ours-7b", "That."),
    ]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([SMALLEST | {"verdict": "A"}], "verdict is 'A'; it must be one of model, reference, tie"),
        ([SMALLEST | {"score": 1.5}], "score is 1.5; it must be a number from 0 to 1"),
        ([SMALLEST | {"score": True}], "score is True"),
        ([SMALLEST | {"score": 0.2}], "verdict is 'model', but the score 0.2 means reference"),
        ([SMALLEST | {"order": "first"}], "order is 'first'"),
        ([SMALLEST | {"judge": None}], "field 'judge' is missing"),
        ([SMALLEST | {"judge": 5}], "field 'judge' must be a string"),
        ([SMALLEST | {"id": ""}], "fields 'id' and 'instruction' are missing"),
        ([SMALLEST | {"reference": "ours"}], "ours is compared with itself"),
        ([SMALLEST, SMALLEST | {"verdict": "tie"}], "judged twice in the same order"),
        ([SMALLEST, SMALLEST | {"id": "8", "order": "model_first"}], "give it to all of them"),
        (
            [SMALLEST | {"instruction": "a"}, SMALLEST | {"judge": "k", "instruction": "b"}],
            "id '7' has another text in an earlier record",
        ),
        (
            [SMALLEST | {"output": "a"}, SMALLEST | {"judge": "k", "output": "b"}],
            "ours has another answer to id '7' in an earlier record",
        ),
        ([annotation(1, 3)], "preference is 3; it must be a number from 1 to 2, 0 or null"),
        ([annotation(1, "B")], "preference is 'B'"),
        ([annotation(1, 1, annotator=None)], "field 'judge' is missing"),
        ([annotation(1, 1), annotation(1, 2)], "1 such, 1 of them with different verdicts"),
        ([game(1, "A", "B")], "the winner is 'A'; it must be model_1, model_2, tie or error"),
        ([game(1, None, None)], "the winner is None"),
        ([game(1, "tie", "tie"), game(1, "tie", "tie")], "2 such, 0 of them with different"),
        ([game(1, "tie", "tie"), game(2, "tie", None)], "lacks the order reference_first (1"),
        ([game(1, "tie", "tie", model_2="")], "field 'model_2' is missing"),
        (
            [{"question_id": 1, "model": "a", "score": 7, "turn": 1, "judgment": "[[7]]"}],
            "grades of single answers",
        ),
        ([{"instruction": "a", "output": "b"}], "has instruction, output; docs/file_formats.md"),
    ],
)
def test_a_fault_is_one_line(tmp_path, records, message):
    path = write_lines(tmp_path / "foreign.jsonl", records)
    text = error(path)
    assert message in text
    assert str(path) in text


def test_faults_are_counted(tmp_path):
    records = [annotation(i, 1 + i % 2) for i in range(5)] + [annotation(8, 5), annotation(9, -1)]
    text = error(write_json(tmp_path / "annotations.json", records))
    assert "annotations.json, record 5: preference is 5" in text
    assert "(2 of 7 records of alpaca_eval's annotations cannot be used)" in text
    with open(write_lines(tmp_path / "pair.jsonl", GAMES), "a") as file:
        file.write('{"question_id": 99, "model_1": "ou')
    assert "pair.jsonl:8: not JSON" in error(tmp_path / "pair.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    assert "contains no judgements" in error(tmp_path / "empty.jsonl")


def test_a_name_for_a_workdir_and_files_that_do_not_exist(tmp_path):
    folder = judge_workdirs.write(tmp_path / "d", lambda _: "tie", items={"heart": ["1"]})
    with pytest.raises(UsageError, match="omit lung="):
        foreign.load([f"lung={folder}"])
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none.json"):
        read(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none.judgements.jsonl"):
        read(tmp_path / "none")


def test_a_workdir_and_a_file_under_one_judge(tmp_path):
    folder = judge_workdirs.write(tmp_path / "d", lambda _: "tie", items={"heart": ["1"]})
    record = SMALLEST | {"judge": "j", "prompt_version": "j-1"}
    assert "rename the judge" in error(folder, write_lines(tmp_path / "x.jsonl", [record]))
    both = read(folder, write_lines(tmp_path / "y.jsonl", [SMALLEST | {"id": "1"}]))
    assert both.names("judge") == ["gpt-5 (one order)", "j"]


def test_graded_verdicts_are_scored_by_their_grade():
    table = np.array([[VerdictCode.MODEL, VerdictCode.MISSING], [VerdictCode.TIE] * 2])
    scores = np.array([[0.9, np.nan], [np.nan, 0.25]])
    bounds = score.item_bounds(table, scores)
    assert bounds.tolist() == [[0.9, 0.375], [0.9, 0.375]]
    near = score.win_rate(np.full((2, 50), 0.001))
    assert near.low < 0.001 < near.high
