"""Counts of words, and singulars."""

import doctest

import pytest

from datagen.analysis import words


def test_examples_of_the_docstrings():
    assert doctest.testmod(words).failed == 0


@pytest.mark.parametrize("text", ["", "one", " two  words\n", "beta-blocker (twice), daily"])
def test_spaced_text_counts_as_split_does(text):
    assert words.count_words(text) == len(text.split())
