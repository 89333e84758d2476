"""The near-duplicate index: rouge_score's own decisions and floats, whatever is pruned."""

import doctest
import gzip
import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.text import near_duplicates
from common.text.near_duplicates import NearDuplicates
from common.text.rouge import rouge_tokens, unicode_tokens
from tests.conftest import DATA, needs_data

rouge_scorer = pytest.importorskip(
    "rouge_score.rouge_scorer", reason="the scores are compared with its own"
)
scoring = pytest.importorskip("rouge_score.scoring")

CORPUS = DATA / "corpora" / "instructions_52k.json.gz"


class UnicodeTokenizer:
    """Our second tokenizer in the form that rouge_score takes."""

    tokenize = staticmethod(unicode_tokens)


SCORERS = {
    "rouge": rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False),
    "unicode": rouge_scorer.RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer()),
}


def score(one: str, other: str, tokenizer: str = "rouge") -> float:
    return SCORERS[tokenizer].score(one, other)["rougeL"].fmeasure


def index_of(texts, threshold=0.7, tokenizer="rouge", learn=False) -> NearDuplicates:
    index = NearDuplicates(threshold, tokenizer)
    if learn:
        index.learn(texts)
    for position, text in enumerate(texts):
        index.add(text, position)
    return index


def found(texts, **options) -> dict[tuple[int, int], float]:
    """Pairs above the threshold, first the later text, and their scores, as the index sees them."""
    index = index_of(texts, **options)
    return {
        (i, match.id): match.score
        for i, text in enumerate(texts)
        for match in index.matches(text)
        if match.id < i
    }


def expected(texts, threshold=0.7, tokenizer="rouge") -> dict[tuple[int, int], float]:
    """The same as rouge_score sees them."""
    scores = {
        (i, j): score(texts[i], texts[j], tokenizer)
        for j, i in itertools.combinations(range(len(texts)), 2)
    }
    return {pair: value for pair, value in scores.items() if value > threshold}


def variants(count: int, seed: int = 0) -> list[str]:
    """Made-up instructions, most of them an earlier one with a few words changed."""
    rng = random.Random(seed)
    words = [f"{a}{b}" for a in "abcdefgh" for b in "lmnopqrst"] + ["the", "of", "a"] * 8
    texts = ["", "?!", "高血压"]
    while len(texts) < count:
        if rng.random() < 0.3:
            tokens = [rng.choice(words) for _ in range(rng.randint(1, 14))]
        else:
            tokens = rouge_tokens(rng.choice(texts))
            for _ in range(rng.randint(0, 3)):
                at = rng.randint(0, len(tokens))
                tokens[at : at + rng.randint(0, 2)] = rng.choices(words, k=rng.randint(0, 2))
        texts.append(" ".join(tokens).capitalize() + rng.choice([".", "?", ""]))
    return texts


def test_doctests():
    results = doctest.testmod(near_duplicates)
    assert results.attempted
    assert not results.failed


# Decisions.


def test_the_same_pairs_and_floats_as_rouge_score():
    texts = variants(160)
    reference = expected(texts)
    assert len(texts) * (len(texts) - 1) // 2 > 10_000
    assert len(reference) > 100
    assert found(texts) == reference  # floats bit for bit


@needs_data
def test_the_same_pairs_as_rouge_score_on_real_text():
    texts = json.loads(gzip.decompress(CORPUS.read_bytes()))[:6000]
    near = sorted(set(itertools.chain.from_iterable(found(texts))))
    sample = [texts[i] for i in near[:80] + list(range(70))]
    reference = expected(sample)
    assert len(sample) * (len(sample) - 1) // 2 > 10_000
    assert len(reference) >= 20
    assert found(sample) == reference


@needs_data
@pytest.mark.slow
def test_the_corpus_has_as_many_pairs_as_brute_force_finds():
    texts = json.loads(gzip.decompress(CORPUS.read_bytes()))
    assert len(texts) == 52_000
    assert len(found(texts, learn=True)) == 10_607


def boundary_cases(parts: int, whole: int, most: int) -> list[tuple[int, int, int]]:
    """(L, m, n) with 2 L / (m + n) = parts / whole exactly and m, n up to `most`."""
    cases = []
    for m, n in itertools.product(range(1, most + 1), repeat=2):
        common, rest = divmod(parts * (m + n), 2 * whole)
        if not rest and common <= min(m, n):
            cases.append((common, m, n))
    return cases


def words(letter: str, count: int) -> list[str]:
    return [f"{letter}{i}" for i in range(count)]


@pytest.mark.parametrize(
    ("threshold", "parts", "whole"), [(0.7, 7, 10), (0.6, 3, 5), (0.9, 9, 10), (0.5, 1, 2)]
)
def test_every_pair_that_lies_exactly_at_the_threshold(threshold, parts, whole):
    dropped, cases = 0, boundary_cases(parts, whole, 300 if threshold == 0.7 else 60)
    for common, m, n in cases:
        shared = words("c", common)
        rouge = scoring.fmeasure(common / n, common / m)  # what follows from L in rouge_score
        index = index_of([" ".join(shared + words("x", m - common))], threshold)
        for other in (shared + words("y", n - common), words("y", n - common) + shared):
            nearest = index.nearest(" ".join(other))
            assert nearest == ((0, rouge) if rouge > threshold else None), (common, m, n)
        dropped += rouge > threshold
    if threshold == 0.7:
        assert (dropped, len(cases)) == (980, 2106)  # the rounding is there, and both ways


def test_pairs_at_the_threshold_through_all_of_rouge_score():
    for common, m, n in boundary_cases(7, 10, 300)[::100]:
        one = " ".join(words("c", common) + words("x", m - common))
        other = " ".join(words("y", n - common) + words("c", common))
        rouge = score(one, other)
        assert rouge == pytest.approx(0.7)
        index = index_of([one])
        assert [match.score for match in index.matches(other)] == [rouge] * (rouge > 0.7)


few_words = st.lists(st.sampled_from("abcdef"), max_size=9).map(" ".join)
skewed = st.lists(st.sampled_from(["the"] * 3 + ["of"] * 2 + list("abcdefghi")), max_size=16)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(few_words | skewed.map(" ".join) | any_text, max_size=12),
    st.sampled_from([0.05, 1 / 3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99]) | st.floats(0.001, 0.999),
    st.sampled_from(["rouge", "unicode"]),
    st.booleans(),
)
@example(["a a a b", "b a a a", "a", "a a"], 0.5, "rouge", False)  # repeated tokens
def test_the_index_is_brute_force(texts, threshold, tokenizer, learn):
    ours = found(texts, threshold=threshold, tokenizer=tokenizer, learn=learn)
    assert ours == expected(texts, threshold, tokenizer)


def test_what_is_learned_between_two_texts_changes_nothing():
    texts = variants(60, seed=1)
    index = index_of(texts[:30])
    index.learn(texts[::-1])
    for position, text in enumerate(texts[30:], start=30):
        index.add(text, position)
    pairs = {(i, m.id) for i, t in enumerate(texts) for m in index.matches(t) if m.id < i}
    assert pairs == expected(texts).keys()


@pytest.mark.parametrize("length", [64, 65, 130, 700])
def test_long_texts(length):
    tokens = words("w", length)
    changed = [f"z{i}" if i % 8 == 3 else token for i, token in enumerate(tokens)]
    one, other = " ".join(tokens), " ".join(changed + words("v", 5))
    assert 0.7 < score(one, other) < 0.9
    assert [tuple(match) for match in index_of([one]).matches(other)] == [(0, score(one, other))]


def test_long_texts_at_their_own_score():
    """A threshold just under the score, where a cutoff inside rapidfuzz goes wrong."""
    rng = random.Random(0)
    for _ in range(40):
        one = rng.choices(words("w", 60), k=rng.randint(129, 220))
        other = list(one)
        for _ in range(rng.randint(1, 5)):
            at = rng.randint(0, len(other))
            other[at : at + rng.randint(0, 20)] = words("v", rng.randint(0, 20))
        one, other = " ".join(one), " ".join(other)
        rouge = score(one, other)
        for text, added in ((one, other), (other, one)):
            for threshold in (math.nextafter(rouge, 0), rouge):
                if threshold < 1:
                    index = index_of([added], threshold)
                    assert index.matches(text) == [(0, rouge)] * (rouge > threshold)


def test_a_vocabulary_beyond_the_basic_plane_of_characters():
    index = NearDuplicates()
    index.learn([" ".join(words("t", 70_000))])  # over surrogates and over 16 bits
    for first in (0xD7FE, 0xFFFE):
        tokens = [f"t{i}" for i in range(first, first + 10)]
        index.add(" ".join(tokens), first)
        other = " ".join(tokens[:5] + ["new"] + tokens[5:])
        assert [tuple(match) for match in index.matches(other)] == [(first, 2 * 10 / 21)]
    assert len(index) == 2


# Asking and adding.


def test_the_nearest_is_the_highest_and_the_first_of_equals():
    index = index_of(["a b c d e f", "a b c d e x", "a b c d e y", "p q"], threshold=0.3)
    assert index.nearest("a b c d e f") == (0, 1.0)
    assert index.nearest("a b c d e x g") == (1, score("a b c d e x", "a b c d e x g"))
    assert index.nearest("a b c d e") == (0, score("a b c d e f", "a b c d e"))
    assert [match.id for match in index.matches("a b c d e")] == [0, 1, 2]
    assert index.nearest("z") is None


def test_asking_adds_nothing_and_adding_counts():
    index = NearDuplicates()
    assert index.nearest("fever and pain") is None
    assert index.nearest("fever and pain") is None
    assert len(index) == 0
    index.add("fever and pain", "a")
    assert index.nearest("fever and pain") == ("a", 1.0)
    index.add("fever and pain", "b")
    assert [match.id for match in index.matches("Fever, and pain!")] == ["a", "b"]
    assert len(index) == 2


@pytest.mark.parametrize("text", ["", " \n", "?!…", "__", "❤️"])
@pytest.mark.parametrize("tokenizer", ["rouge", "unicode"])
def test_a_text_without_tokens_is_near_to_nothing(text, tokenizer):
    assert score(text, text, tokenizer) == 0
    index = index_of([text, "fever"], tokenizer=tokenizer)
    assert index.matches(text) == []
    assert index.nearest("fever") == (1, 1.0)


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 1.5, float("nan")])
def test_a_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        NearDuplicates(threshold)


def test_an_unknown_tokenizer():
    with pytest.raises(ValueError, match="unknown tokenizer 'latin'; choose from rouge, unicode"):
        NearDuplicates(tokenizer="latin")


# Pruning.


def test_the_example_of_the_docstring():
    one, other = "Name signs of sepsis", "fever cause signs of"
    tokens = sorted({*rouge_tokens(one), *rouge_tokens(other)})
    index = NearDuplicates(threshold=0.4)
    index.learn([" ".join(["of"] * 9 + ["name", "signs"] * 4 + tokens)])
    index.add(other, "other")
    left = index._encode(one).prefix
    assert [*left.values()] == [4, 3, 2, 1]
    signs = index._characters["signs"]
    assert left[signs] == 3
    assert list(index._postings[signs]) == [0, 2]  # position, tokens left
    assert len(index.matches(one)) == 1, "F is 0.5"


def test_few_pairs_are_compared(monkeypatch):
    compared = 0
    cdist = near_duplicates.process.cdist

    def count(queries, choices, **options):
        nonlocal compared
        compared += len(choices)
        return cdist(queries, choices, **options)

    monkeypatch.setattr(near_duplicates.process, "cdist", count)
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.zipf(1.3, 15) % 5000) for _ in range(500)]
    index_of(texts, learn=True)
    index = index_of(texts, learn=True)
    for text in texts:
        assert index.nearest(text).score == 1
    assert len(texts) <= compared < 0.06 * len(texts) ** 2  # half of what the prefix alone leaves


def test_other_scripts_are_compared_by_the_unicode_tokenizer_only():
    texts = ["高血压的主要症状是什么？", "高血压的常见症状是什么?", "糖尿病如何治疗？"]
    assert found(texts) == {}
    assert found(texts, tokenizer="unicode") == {(1, 0): score(texts[0], texts[1], "unicode")}
