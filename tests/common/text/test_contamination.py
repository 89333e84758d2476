"""Test items in training data: words in a row, near-duplicates, and what is no sign of either."""

import doctest

import pytest

from common.text import contamination, urgency
from common.text.contamination import MAX_TEXTS, WORDS, seen, shared_words

ITEM = "A woman of 54 has had chest pain and nausea since this morning what should be done first"
"""17 words."""


def words(count: int, start: int = 0) -> str:
    return " ".join(ITEM.split()[start : start + count])


@pytest.mark.parametrize("module", [contamination, urgency])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(("count", "found"), [(WORDS, 1), (WORDS - 1, None)])
def test_thirteen_words_in_a_row_are_found_and_twelve_are_not(count, found):
    training = ["Nothing of it.", f"Once more: {words(count, 2).upper()}, again.", ITEM]
    assert shared_words([ITEM], training[:2]) == [found]


def test_words_as_a_plain_search_finds_them():
    texts = [ITEM, "Another: " + words(14, 3), words(5), "fièvre " * 20]
    training = ["x " * 40, words(13, 1) + " indeed", "Fièvre, " * 13, "Answer. " + ITEM]

    def plain(text: str) -> int | None:
        clean = [" ".join(contamination.unicode_tokens(t)) for t in (text, *training)]
        tokens = clean[0].split()
        runs = [" ".join(tokens[i : i + WORDS]) for i in range(len(tokens) - WORDS + 1)]
        hits = (i for i, t in enumerate(clean[1:]) if any(f" {r} " in f" {t} " for r in runs))
        return next(hits, None)

    assert shared_words(texts, training) == [plain(text) for text in texts] == [1, 3, None, 2]


def test_what_all_items_share_is_no_sign():
    shared = " ".join(f"instruction{i}" for i in range(WORDS))
    texts = [f"{shared} item {i}" for i in range(MAX_TEXTS + 1)]
    assert set(shared_words(texts, [shared])) == {None}
    assert set(shared_words(texts[:MAX_TEXTS], [shared])) == {0}


def test_near_and_short_items():
    short = "List four causes of chest pain"
    found, other = seen([short, ITEM], ["List three causes of chest pain."], ["Yes, " + ITEM])
    assert (found.words, found.near, found.short) == (None, 0, True)
    assert (other.words, other.near, other.short) == (0, None, False)
