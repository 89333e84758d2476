"""Tokens, and ROUGE against the rouge-score package on texts of every kind."""

import doctest
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.text import rouge as rouge_module
from common.text.rouge import NAMES, Rouge, TokenCharacters, rouge_tokens, unicode_tokens

rouge_scorer = pytest.importorskip(
    "rouge_score.rouge_scorer", reason="the scores are compared with its own"
)
tokenize = pytest.importorskip("rouge_score.tokenize")

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


# Tokens.


def test_doctests():
    results = doctest.testmod(rouge_module)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize(
    ("text", "rouge", "any_script"),
    [
        ("What's COVID-19?", ["what", "s", "covid", "19"], ["what", "s", "covid", "19"]),
        ("a_b", ["a", "b"], ["a", "b"]),
        ("Fièvre", ["fi", "vre"], ["fièvre"]),
        ("Fie\u0300vre", ["fie", "vre"], ["fièvre"]),
        ("高血压的症状", [], list("高血压的症状")),
        ("血圧は？", [], ["血", "圧", "は"]),
        ("ไข้", [], ["ไ", "ข", "้"]),
        ("हिन्दी में", [], ["हिन्दी", "में"]),
        ("고혈압 증상", [], ["고혈압", "증상"]),
        ("ارتفاع ضغط", [], ["ارتفاع", "ضغط"]),
        ("Straße ＡＢＣ", ["stra", "e"], ["strasse", "abc"]),
        ("co\u00adoperate", ["co", "operate"], ["cooperate"]),
        ("❤️ 37.5 °C", ["37", "5", "c"], ["37", "5", "c"]),
    ],
)
def test_tokens(text, rouge, any_script):
    assert rouge_tokens(text) == rouge
    assert unicode_tokens(text) == any_script


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_tokens_are_rouge_scores(text):
    assert rouge_tokens(text) == tokenize.tokenize(text, None)


@given(st.text(st.characters(max_codepoint=127)))
def test_both_tokenizers_agree_on_ascii(text):
    assert unicode_tokens(text) == rouge_tokens(text)


def test_words_that_differ_in_combining_marks_are_different():
    words = ["काल", "कुल", "कील"]  # time, total, nail
    assert [unicode_tokens(word) for word in words] == [[word] for word in words]


def test_too_many_tokens_are_an_error():
    characters = TokenCharacters.fromkeys(range(0x110000 - 0x800), "")
    full = TokenCharacters(characters)
    with pytest.raises(ValueError, match="over 1,112,064 distinct tokens"):
        full["one more"]
