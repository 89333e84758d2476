"""ROUGE against the rouge-score package, on texts of every kind."""

import random

import numpy as np
import pytest
from rouge_score import rouge_scorer

from common.rouge import NAMES, Rouge

TEXTS = [
    "",
    " \n",
    "...",
    "Fever",
    "fever FEVER fever.",
    "The patient's X-ray: 2 of 3 lungs, beta-blocker 13.5 mg",
    "高血压",
    "Café naïve",
    "the the the the cat the the",
    "a b a b a b a",
    "b a b a b a b",
]


def random_texts(count: int) -> list[str]:
    """Few distinct words, so that repeats and crossings are the rule."""
    generator = random.Random(0)
    words = ["a", "b", "c", "d", "e", "fever", "rest"]
    return [" ".join(generator.choices(words, k=generator.randint(0, 90))) for _ in range(count)]


def expected(output: str, reference: str) -> list[float]:
    scores = rouge_scorer.RougeScorer(list(NAMES)).score(reference, output)
    return [scores[name].fmeasure for name in NAMES]


def test_every_pair_equals_the_package():
    texts = TEXTS + random_texts(8)
    pairs = [(output, reference) for output in texts for reference in texts]
    rouge = Rouge()
    encoded = {text: rouge.encode(text) for text in texts}
    scores = rouge.f_measures([encoded[a] for a, _ in pairs], [encoded[b] for _, b in pairs])
    np.testing.assert_array_equal(scores, [expected(*pair) for pair in pairs])
    assert len(np.unique(scores)) > 100, "the texts are worth comparing"


def test_more_tokens_than_code_points_before_the_surrogates():
    rouge = Rouge()
    for first in range(0, 60_000, 1000):
        rouge.encode(" ".join(f"w{i}" for i in range(first, first + 1000)))
    late = "w100 w55300 w55299 w59999"
    scores = rouge.f_measures([rouge.encode(late)], [rouge.encode("w55300 w59999")])
    np.testing.assert_array_equal(scores[0], expected(late, "w55300 w59999"))
    rouge.encode(late).tokens.encode("utf-8")  # no surrogate among them


def test_shapes():
    rouge = Rouge()
    assert rouge.f_measures([], []).shape == (0, 3)
    with pytest.raises(ValueError):
        rouge.f_measures([rouge.encode("a")], [])
