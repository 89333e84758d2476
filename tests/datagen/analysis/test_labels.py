"""Spellings of one label are counted as one, and none is lost."""

import doctest

import pytest

from datagen.analysis import labels


def test_examples_of_the_docstrings():
    assert doctest.testmod(labels).failed == 0


@pytest.mark.parametrize(
    "field, spellings",
    [
        ("type", ["Multiple-choice Q&A", "Multiple Choice Q & A", "multiple-choice q and a"]),
        ("type", ["Multi-Hop Reasoning", "Multiple-hop reasoning", "multi hop reasonings"]),
        ("type", ["Rewrite", "Rewrites", "Rewriting", "Rewrite Task"]),
        ("type", ["Summarization", "Summarisations", "SUMMARIZATION task"]),
        ("view", ["Patient", "Patients", "Patient's Perspective", "Patient’s view"]),
        ("topic", ["Paediatrics", "Pediatrics"]),
        ("topic", ["Diagnosis", "Diagnoses"]),
    ],
)
def test_spellings_of_one_label(field, spellings):
    assert len({labels.key(spelling, field) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    "field, one, other",
    [
        ("type", "Single-Hop Reasoning", "Multi-Hop Reasoning"),
        ("type", "Open Q&A", "Multiple-Choice Q&A"),
        ("view", "Student", "Medical Student"),
        ("topic", "医学", "药学"),
        ("topic", "+", "-"),
    ],
)
def test_different_labels_stay_apart(field, one, other):
    assert labels.key(one, field) != labels.key(other, field)


def test_the_ten_types_are_ten():
    assert len({labels.key(name, "type") for name in labels.TASK_TYPES}) == 10


def test_counts_and_missing_labels():
    found = labels.count(["Rewrite", "rewrites", "Rewrite", None, " ", "Chat", 7], "type")
    assert found.counts == {"rewrite": 3, "7": 1, "chat": 1}
    assert found.spellings["rewrite"] == {"Rewrite": 2, "rewrites": 1}
    assert found.missing == 2


def test_the_name_shown_is_the_prompt_s_or_the_most_frequent_of_all_sets():
    types = labels.count(["multiple choice q&a"] * 3, "type")
    assert set(labels.display_names([types], "type").values()) == {"Multiple-Choice Q&A"}
    sets = [labels.count(x, "topic") for x in (["Disease"], ["Diseases", "Diseases"])]
    assert labels.display_names(sets, "topic") == {"disease": "Diseases"}
