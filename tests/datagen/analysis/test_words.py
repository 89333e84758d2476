"""Words of any script, and singulars."""

import doctest

import pytest

from datagen.analysis import words


def test_examples_of_the_docstrings():
    assert doctest.testmod(words).failed == 0


@pytest.mark.parametrize("text", ["", "one", " two  words\n", "beta-blocker (twice), daily"])
def test_spaced_text_counts_as_split_does(text):
    assert words.count(text) == len(text.split())


def test_rouge_tokens_are_rouge_score_s():
    tokenize = pytest.importorskip("rouge_score.tokenize").tokenize
    for text in ("The patient's X-ray, 2.5 mg!", "naïve Ωμέγα 什么 İstanbul", ""):
        assert words.rouge_tokens(text) == tokenize(text, None)


def test_tokens_of_other_scripts():
    assert words.tokens("Что такое ДИАБЕТ? 糖尿病") == ["что", "такое", "диабет", "糖", "尿", "病"]
