"""Entropies, distinct-n, duplicates, nearest neighbours and histograms."""

import doctest
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.text.rouge import rouge_tokens
from datagen.analysis import diversity


def test_examples_of_the_docstrings():
    assert doctest.testmod(diversity).failed == 0


def test_effective_number():
    assert diversity.indices([3, 3, 3]) == pytest.approx(
        {"distinct": 3, "entropy_bits": 1.584962500721156, "effective_number": 3}
    )
    nothing = {"distinct": 0, "entropy_bits": 0, "effective_number": 0}
    assert diversity.indices([]) == nothing


def test_vocabulary_by_hand():
    texts = [["a", "b", "a"], ["b", "a"]]
    found = diversity.vocabulary(texts)
    assert (found["tokens"], found["types"], found["type_token_ratio"]) == (5, 2, 0.4)
    assert found["distinct_1"] == 0.4
    assert found["distinct_2"] == 2 / 3  # ab ba ba
    assert found["distinct_3"] == 1  # no 3-gram crosses texts
    assert diversity.vocabulary(texts, 4)["tokens"] == 4
    assert diversity.vocabulary([])["distinct_2"] == 0


def test_duplicates():
    tasks = [
        ("Explain.", "x"),
        ("Explain.", "x"),
        ("Explain.", "y"),
        ("explain", ""),
        ("什么?", ""),
        ("काल", ""),
        ("कुल", ""),
        ("?", ""),
        ("!", ""),
    ]
    assert diversity.duplicates(tasks) == {
        "unique_instructions": 7,
        "repeated_instructions": 2,
        "repeated_folded": 3,
        "repeated_with_the_same_input": 1,
    }


def find(texts, queries=0):
    return diversity.nearest(texts, queries=queries, seed=0, tokenize=rouge_tokens)


def test_nearest_is_rouge_score_s_best():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefg", k=draw.randint(1, 12))) for _ in range(150)]
    expected = [
        max(scorer.score(a, b)["rougeL"].fmeasure for j, b in enumerate(texts) if i != j)
        for i, a in enumerate(texts)
    ]
    scores, without = find(texts)
    assert scores == pytest.approx(expected)
    assert without == 0


def test_nearest_leaves_out_what_has_no_token():
    assert find(["a b", "什么", "a c", ""]) == ([0.5, 0.5], 2)
    assert find(["only one"]) == ([], 0)
    assert find(["same", "same"]) == ([1, 1], 0)


def test_nearest_sample_is_of_the_size_asked_and_the_same_again():
    texts = [f"{i} {i % 7} {i % 3}" for i in range(100)]
    assert len(find(texts, 10)[0]) == 10
    assert find(texts, 10) == find(texts, 10)
    assert len(find(texts, 1000)[0]) == 100


@given(st.lists(st.integers(0, 5000)))
def test_histograms_lose_nothing(lengths):
    edges = diversity.word_edges(lengths)
    assert len(edges) <= 22
    assert sum(diversity.histogram(lengths, edges)) == len(lengths)


def test_the_last_bin_is_open():
    assert diversity.histogram([0, 4.9, 5, 10, 999], [0, 5, 10]) == [2, 1, 2]


def test_length_summary():
    assert diversity.length_summary([1, 2, 6])["median"] == 2
    assert diversity.length_summary([])["count"] == 0


@pytest.mark.parametrize("text", ["", "one", " two  words\n", "beta-blocker (twice), daily"])
def test_spaced_text_counts_as_split_does(text):
    assert diversity.count_words(text) == len(text.split())
