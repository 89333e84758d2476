"""The measures of instruction sets, side by side."""

import json
from functools import partial

import pytest

from datagen.analysis import measures, verb_objects


def record(instruction, **fields):
    return {"instruction": instruction, "input": "", **fields}


SETS = {
    "A": [
        record(
            "Write a note.", type="Rewrites", topic="Heart", difficulty="3/5", output="Yes it is"
        ),
        record("Write a note.", type="Rewrite Task", difficulty=2, input="two words"),
        record("What is fever?", type="Chat", difficulty="hard"),
    ],
    "B": [record("List the drugs.", type="rewrite")],
}


def measure(sets=SETS, **changed):
    settings = {"parser": "rules", "queries": 0, "seed": 0, "tokenizer": "rouge"} | changed
    return measures.measure(sets, partial(map, verb_objects.by_rules), **settings)


def test_counts_by_hand():
    found = measure()["sets"]["A"]
    assert found["records"] == 3
    assert found["unique_instructions"] == 2
    assert found["repeated_with_the_same_input"] == 0
    assert found["words"]["instruction"]["median"] == 3
    assert found["words"]["input"]["count"] == 1
    assert found["words"]["output"]["max"] == 3
    assert found["verb_objects"]["covered"] == 2
    assert found["verb_objects"]["top"] == [{"verb": "write", "count": 2, "objects": {"note": 2}}]
    assert found["nearest"]["identical"] == 2
    assert sum(found["nearest"]["histogram"]) == found["nearest"]["queries"] == 3


def test_labels_are_named_alike_in_all_sets():
    sets = measure()["sets"]
    names = {name: [v["name"] for v in s["labels"]["type"]["values"]] for name, s in sets.items()}
    assert names == {"A": ["Rewrite", "Chat"], "B": ["Rewrite"]}
    assert sets["A"]["labels"]["topic"]["missing"] == 2
    difficulty = sets["A"]["labels"]["difficulty"]
    assert [value["count"] for value in difficulty["values"]] == [0, 1, 1, 0, 0]
    assert difficulty["missing"] == 1


def test_vocabulary_is_compared_at_equal_size():
    sets = measure()["sets"]
    assert sets["A"]["vocabulary"]["tokens"] == 9
    assert [s["vocabulary_of_equal_size"]["tokens"] for s in sets.values()] == [3, 3]


def test_the_sunburst_s_rows_are_20_verbs_of_4_objects():
    verbs = sorted(verb_objects.IMPERATIVE_VERBS)[:25]
    nouns = ("note", "list", "table", "plan", "report")
    records = [record(f"{verb} a {noun}") for verb in verbs for noun in nouns]
    pairs = measure({"A": records})["sets"]["A"]["verb_objects"]
    assert pairs["covered"] == 125
    assert len(pairs["top"]) == 20
    assert all(row["count"] == 5 and len(row["objects"]) == 4 for row in pairs["top"])


def test_one_record_and_no_latin_letter():
    found = measure({"A": [record("什么是糖尿病?")]})["sets"]["A"]
    assert found["nearest"]["without_tokens"] == 1
    assert found["words"]["instruction"]["count"] == 1
    assert json.dumps(found)


def test_the_unicode_tokenizer_sees_other_scripts():
    sets = {"A": [record("什么是糖"), record("什么是药")]}
    assert measure(sets, tokenizer="unicode")["sets"]["A"]["nearest"]["mean"] == 0.75


def test_combining_marks_tell_words_apart():
    sets = {"A": [record(word) for word in ("काल", "कुल", "कील")]}
    found = measure(sets, tokenizer="unicode")["sets"]["A"]
    assert found["nearest"]["identical"] == found["nearest"]["over_near_duplicate"] == 0
    assert found["repeated_folded"] == 0
    assert (found["vocabulary"]["tokens"], found["vocabulary"]["types"]) == (3, 3)


@pytest.mark.parametrize("tokenizer", ["rouge", "unicode"])
def test_an_apostrophe_separates_tokens_everywhere(tokenizer):
    sets = {"A": [record("Don't stop"), record("don t stop")]}
    found = measure(sets, tokenizer=tokenizer)["sets"]["A"]
    assert found["nearest"]["identical"] == 2
    assert found["repeated_folded"] == 1
    assert (found["vocabulary"]["tokens"], found["vocabulary"]["types"]) == (6, 3)
