"""Answers of every form, paired by id and text, and errors that name the first wrong record."""

import gzip
import shutil

import pytest

from evaluation.inputs import benchmarks, outputs
from evaluation.inputs.benchmarks import Item
from evaluation.inputs.outputs import ModelOutput
from tests.conftest import DATA, needs_data
from tests.support.published_files import (
    DOCTOR,
    FARM,
    IDS,
    POSTS,
    QUESTIONS,
    flat,
    merged,
    original,
    published_outputs,
    references,
    small,
    write,
)

__all__ = ["flat", "original", "small"]

ITEMS = [Item(str(i), "medinstruct", q, "") for i, q in zip(IDS, QUESTIONS, strict=True)]
ICLINIQ = [Item(str(i), "icliniq", DOCTOR, post) for i, post in enumerate(POSTS)]


def ours(**changes) -> list[dict]:
    """Model outputs in our own format."""
    return [
        {
            "instruction": item.instruction,
            "output": f"ours {item.id}",
            "generator": "mine",
            "id": item.id,
            "input": "",
            "dataset": "MedInstruct-test",
            "finish_reason": "stop",
            "num_tokens": 3,
        }
        | changes
        for item in ITEMS
    ]


def load(path, records, items=ITEMS, name="") -> list[ModelOutput]:
    write(path, records)
    return outputs.load(f"{name}={path}" if name else str(path), items, path.parent)


def texts(answers: list[ModelOutput]) -> list[str]:
    return [answer.output for answer in answers]


# Forms.


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz", "x.json.gz"])
def test_our_own_format_by_id_in_any_order(tmp_path, name):
    answers = load(tmp_path / name, ours()[::-1])
    assert texts(answers) == [f"ours {number}" for number in IDS]
    assert answers[3] == ModelOutput("medinstruct", "4", "mine", "ours 4", "stop", 3)


def test_what_is_written_is_read_again(tmp_path):
    answers = load(tmp_path / "x.jsonl", ours(output="a\n\u2028b "))
    pairs = zip(ITEMS, answers, strict=True)
    records = [outputs.model_output_record(item, answer) for item, answer in pairs]
    assert load(tmp_path / "y.jsonl", records) == answers


def test_without_ids_by_text_whatever_the_white_space(tmp_path):
    records = [{"instruction": " Is it  flu, or a cold? ", "output": "x"}]
    records += [{"instruction": q, "output": q} for q in QUESTIONS if "flu" not in q]
    answers = load(tmp_path / "x.jsonl", records, name="mine")
    assert texts(answers) == [QUESTIONS[0], "x", *QUESTIONS[2:]]
    assert answers[0] == ModelOutput("medinstruct", "0", "mine", QUESTIONS[0])


def test_published_ids_are_rows_and_pair_nothing(tmp_path):
    records = published_outputs([(q, "") for q in QUESTIONS], "alpaca")
    answers = load(tmp_path / "x.json", records[::-1], name="alpaca")
    assert texts(answers) == [f"alpaca {row}" for row in range(4)]
    assert answers[3].id == "4"


def test_output_beside_response_is_another_models(tmp_path):
    beside = {"output": "the reference", "generator": "text_davinci_003"}
    records = published_outputs([(q, "") for q in QUESTIONS], "alpaca", **beside)
    path = tmp_path / "x.json"
    assert texts(load(path, records, name="alpaca")) == [f"alpaca {row}" for row in range(4)]
    with pytest.raises(ValueError, match="field 'generator' is missing"):
        outputs.load(str(path), ITEMS, tmp_path)
    column = outputs.load(f"td={path}#output", ITEMS, tmp_path)
    assert {(answer.generator, answer.output) for answer in column} == {("td", "the reference")}


@pytest.mark.parametrize("model", ["gpt-4", "claude-2"])
def test_published_references(tmp_path, model):
    questions, posts = references(model)
    answers = load(tmp_path / "q.jsonl", questions[::-1], name=model)
    assert texts(answers) == [f"{model}: {question}" for question in QUESTIONS]
    answers = load(tmp_path / "p.jsonl", posts[::-1], ICLINIQ, name=model)
    assert [text.strip() for text in texts(answers)] == [f"{model}: {p}".strip() for p in POSTS]


def test_an_id_and_the_input_alone(tmp_path):
    records = [{"id": i, "input": post, "output": post} for i, post in enumerate(POSTS)]
    assert texts(load(tmp_path / "x.jsonl", records, ICLINIQ, "x")) == POSTS
    records[1]["input"] = POSTS[2]
    with pytest.raises(ValueError, match=r":2: the text of item '1' .* is 'If you are .*'Is RNA"):
        load(tmp_path / "x.jsonl", records, ICLINIQ, "x")


def test_input_and_instruction_may_be_merged_or_apart(tmp_path):
    items = [Item(str(i), "alpaca_farm", *pair) for i, pair in enumerate(FARM)]
    apart = [{"instruction": a, "input": b, "output": merged(a, b)} for a, b in FARM]
    together = [{"instruction": merged(a, b), "output": merged(a, b)} for a, b in FARM]
    expected = [merged(*pair) for pair in FARM]
    assert texts(load(tmp_path / "a.jsonl", apart, items, "x")) == expected
    assert texts(load(tmp_path / "b.jsonl", together, items, "x")) == expected


def test_the_same_question_twice_needs_ids(tmp_path):
    items = [Item("a", "x", "Why?", ""), Item("b", "x", "Why?", "")]
    records = [{"instruction": "Why?", "output": name, "id": name} for name in "ba"]
    assert texts(load(tmp_path / "x.jsonl", records, items, "m")) == ["a", "b"]
    without = [{"instruction": "Why?", "output": "?"}] * 2
    with pytest.raises(
        ValueError, match=r"x\.jsonl:1: items 'a' and 'b' of x both have .* 'Why\?'"
    ):
        load(tmp_path / "x.jsonl", without, items, "m")


# By name.


def test_everything_of_the_original_repository_by_name(original):
    found = {name: outputs.names(name, original) for name in benchmarks.BENCHMARKS}
    models, asked = ["AlpaCare-7b", "alpaca-13b"], ["claude-2", "gpt-4"]
    assert found == {
        "medinstruct": sorted([*models, *asked, "gpt-3.5-turbo", "text-davinci-003"]),
        "icliniq": sorted(models + asked),
        "alpaca_farm": sorted([*models, "medalpaca-7b", "text-davinci-003"]),
    }
    for benchmark, names in found.items():
        items = benchmarks.load(benchmark, original)
        for name in names:
            answers = outputs.load(name, items, original)
            assert {(a.generator, a.benchmark) for a in answers} == {(name, benchmark)}
    items = benchmarks.load("medinstruct", original)
    assert texts(outputs.load("gpt-3.5-turbo", items, original))[3] == "gpt-3.5-turbo-answer on 4"
    assert texts(outputs.load("gpt-4", items, original))[3] == "gpt-4: Why rest?", "its own file"
    items = benchmarks.load("alpaca_farm", original)
    assert set(texts(outputs.load("text-davinci-003", items, original))) == {"the reference"}


def test_everything_of_the_flat_layout_by_name(flat):
    for benchmark, expected in {
        "medinstruct": ["claude-2", "gpt-3.5-turbo", "gpt-4", "text-davinci-003"],
        "icliniq": ["alpacare-7b", "claude-2", "gpt-4"],
        "alpaca_farm": ["alpacare-7b", "gpt-3.5-turbo-0301"],
    }.items():
        assert outputs.names(benchmark, flat) == expected
        items = benchmarks.load(benchmark, flat)
        for name in expected:
            assert len(outputs.load(name, items, flat)) == len(items)


def test_an_unknown_name_is_answered_by_the_known_ones(flat, tmp_path):
    with pytest.raises(FileNotFoundError, match="no answers of 'gpt-5' to icliniq, only of alpac"):
        outputs.load("gpt-5", ICLINIQ, flat)
    with pytest.raises(FileNotFoundError, match="no answers of 'gpt-5' to x, only of nothing"):
        outputs.load("gpt-5", [Item("0", "x", "a", "")], tmp_path)


# What does not fit.


@pytest.mark.parametrize(
    "change, message",
    [
        ({"id": "143"}, r"x\.jsonl:2: medinstruct has no item '143' \('Is it flu, or a cold\?'\)"),
        (
            {"id": "2"},
            r":2: the text of item '2' .* is 'Name a .*', in the record 'Is it flu",
        ),
        (
            {"instruction": "Is it flue?"},
            r":2: the text of item '1' .* is 'Is it flu, .*'Is it flue\?'",
        ),
        (
            {"id": None, "instruction": "Hm?"},
            r":2: no item .* has the text 'Hm\?'; item '1'",
        ),
        ({"instruction": ""}, r":2: instruction, input or prompt is missing"),
        ({"output": 3}, r":2: field 'output' must be a string"),
        ({"num_tokens": "3"}, r":2: field 'num_tokens' must be an integer"),
        (
            {"generator": "other"},
            r":2: generator is 'other', in the first record 'mine'; use a",
        ),
    ],
)
def test_the_first_wrong_record_is_named(tmp_path, change, message):
    records = ours()
    records[1] |= change
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "x.jsonl", records)
    assert "\n" not in str(error.value)


def test_long_texts_are_shown_short(tmp_path):
    records = ours()
    records[2]["instruction"] = "Long question? " * 100
    with pytest.raises(ValueError, match=r"'Name a DNA .*'Long .*\.\.\.'") as error:
        load(tmp_path / "x.jsonl", records)
    assert len(str(error.value)) < 500


def test_twice_missing_and_another_benchmark(tmp_path):
    path = tmp_path / "x.jsonl"
    with pytest.raises(ValueError, match=r"x\.jsonl:5: answers item '2' .* as .*:3 does; keep one"):
        load(path, [*ours(), ours()[2]])
    with pytest.raises(ValueError, match=r"2 of 4 items of .* no answer, the first '1' \('Is it f"):
        load(path, [ours()[0], ours()[3]])
    with pytest.raises(ValueError, match=r"4 of 4 items"):
        load(path, [], name="x")
    with pytest.raises(ValueError, match=r":1: no item of icliniq has .* 'What .*--benchmark"):
        load(path, references("gpt-4")[0], ICLINIQ, "gpt-4")
    with pytest.raises(ValueError, match=r":1: field 'output' is missing; .*; name the field"):
        load(path, [{"instruction": "a", "answer": "b"}], name="x")


@needs_data
def test_the_published_files_pair(tmp_path):
    count = 0
    for benchmark in benchmarks.BENCHMARKS:
        items = benchmarks.load(benchmark, DATA)
        for name in outputs.names(benchmark, DATA):
            assert len(outputs.load(name, items, DATA)) == len(items)
            count += 1
    assert count == 17
    items = benchmarks.load("medinstruct", DATA)
    own = outputs.load("gpt-4", items, DATA)
    column = f"gpt-4={DATA}/testsets/MedInstruct-test.jsonl#gpt-4-answer"
    assert outputs.load(column, items, DATA) == own


@needs_data
def test_the_published_files_under_the_originals_names(tmp_path):
    origin = {
        "testsets/MedInstruct-test.jsonl": "MedInstruct-test.jsonl",
        "references/claude-2/icliniq.jsonl": "reference_outputs/claude-2/iCliniq_output.jsonl",
        "references/gpt-4/medinstruct.jsonl": "reference_outputs/gpt-4/medsi_output.jsonl",
        "model_outputs/alpacare-7b/alpaca_farm.json": (
            "model_ouputs/AlpaCare-7b/alpaca_eval/seed_0.json"
        ),
    }
    for here, there in origin.items():
        (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / here, tmp_path / there)
    path = tmp_path / "model_ouputs/AlpaCare-7b/iCliniq/seed_0.json"
    path.parent.mkdir(parents=True)
    packed = DATA / "model_outputs/alpacare-7b/icliniq.json.gz"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    for benchmark, names in {
        "medinstruct": ["claude-2", "gpt-3.5-turbo", "gpt-4", "text-davinci-003"],
        "icliniq": ["AlpaCare-7b", "claude-2"],
        "alpaca_farm": ["AlpaCare-7b"],
    }.items():
        items = benchmarks.load(benchmark, tmp_path)
        assert [item.text for item in items] == [
            item.text for item in benchmarks.load(benchmark, DATA)
        ]
        assert outputs.names(benchmark, tmp_path) == names
        for name in names:
            outputs.load(name, items, tmp_path)


@pytest.mark.parametrize("name", ["*", "gpt-?", "gpt-[4]", "**"])
def test_a_name_is_no_pattern(flat, name):
    with pytest.raises(FileNotFoundError, match="has no answers of"):
        outputs.find(name, "medinstruct", flat)
