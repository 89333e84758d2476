"""What speaks against a verdict: sentences that give it to another side, deny it or take it back.

The texts hold marks in place of what a judge's form names; see `statements`, whose rule this is a
part of.
"""

import itertools
import re
from collections.abc import Set

from evaluation.judging.vocabulary import (
    ASIDES,
    BETTER_IN_OTHER_LANGUAGES,
    BLAME,
    CONCLUSIONS,
    CONDITIONS,
    EQUALITY,
    FUNCTION_WORDS,
    HEDGES,
    NEGATIONS,
    PRAISE,
    PRETENCES,
    PRONOUNS,
    RETRACTIONS,
    TIE_WORDS,
    VERDICT_NOUNS,
    VERDICT_WORDS,
)

FIRST, SECOND, TIE = MARKS = "\ue000\ue001\ue002"
"""Private characters of Unicode, removed from what judges write."""
ANY_MARK = re.compile(f"[{MARKS}]")
SIDE_NAME = re.compile(
    r"\b(?:assistant|answer|candidate|model|option|output|response)\s+"
    r"(?:\(?([ab])\b\)?|(?:#|no\. ?)?([12])\b)(?:'s\b)?"
    r"|(?<![a-z0-9_])((?-i:[AB])|[ab](?=\s*(?:[^\w\s]|$)))(?![a-z0-9_])(?:'s\b)?",
    re.IGNORECASE,
)
_PLACED = r" (?:answer|one|output|response)"
_ORDINAL = re.compile(
    rf"\b(?:(first|former|1st|left-hand|on the left|top{_PLACED})"
    rf"|(second|latter|2nd|right-hand|on the right|(?:bottom|last){_PLACED})|other)\b",
    re.IGNORECASE,
)
ENGLISH_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*", re.IGNORECASE)
_SUBJECT = rf"answer|assistant|both|it|it's|its|neither|output|response|they|this|[{MARKS}]"
BECAUSE = re.compile(
    rf"\bbecause\b|\bfor(?=\s+(?:it|it's|its)\b)|\bas(?=\s+(?:{_SUBJECT})(?!\w))"
    rf"|\bsince(?=\s+(?:the|{_SUBJECT})(?!\w))",
    re.IGNORECASE,
)
_SUBJECT_END = re.compile(
    r"[,:;—]|\s[-–]+\s|\b(?:although|and|but|than|though|unlike|whereas|while)\b"
    r"|(?:(?<=beaten)|(?<=behind)|(?<=inferior)|(?<=loses)|(?<=lost)|(?<=outclassed)|(?<=performed)"
    r"|(?<=surpassed)|(?<=trails)) (?:by |to )?",
    re.IGNORECASE,
)
_WISH = re.compile(
    r"\b(?:i|we|anyone|(?:clinician|doctor|expert|nurse|patient|reader|user)s?)(?:'d| would)\b"
    r"|\bthe one to\b|\bit(?:'s| is) the (?:first|other|second)\b"
    r"|\bwhat (?:a|the) \w+ (?:needs|wants)",
    re.IGNORECASE,
)
HEDGE = re.compile(HEDGES, re.IGNORECASE)
ASIDE = re.compile(f"{ASIDES}|{HEDGES}", re.IGNORECASE)
_CONCLUDES = re.compile(CONCLUSIONS, re.IGNORECASE)
_BETTER_ELSEWHERE = re.compile(BETTER_IN_OTHER_LANGUAGES, re.IGNORECASE)
_LOSES = re.compile(
    r"[>≻]|\b(?:as|beats|edges out|outperforms|over|surpasses|than)\b", re.IGNORECASE
)
_CONTRAST = re.compile(r"\b(?:although|but|however|though|whereas|while|yet)\b", re.IGNORECASE)
_NO_DOUBT = re.compile(r"\b(?:no|without(?: a)?) doubt\b", re.IGNORECASE)
_RATED = re.compile(
    r"\b(?:out of|points?|rat(?:ed|ings?)|scor(?:ed?|es)|totals?)\b|\d ?/ ?\d", re.I
)
_SCORE = re.compile(r"(?<![\d/.])(\d+(?:\.\d+)?)(?: ?(?:/|out of) ?\d+)?(?![\d.]*\d)")


def takes_back(text: str) -> bool:
    """Whether a short sentence retracts something: longer ones may do so with a fact."""
    return len(text.split()) <= 5 and bool(lower_words(text) & RETRACTIONS)


def outscored(sentences: list[str], mark: str) -> bool:
    """Whether two scores, in a sentence or in two that follow each other, deny a verdict."""
    pairs = [*sentences, *map(" ".join, itertools.pairwise(sentences))]
    for text in filter(_RATED.search, pairs):
        numbers = [float(found[1]) for found in _SCORE.finditer(SIDE_NAME.sub(" x ", text))]
        sides = _sides(text)
        if len(numbers) == 2 and sorted(sides) == [FIRST, SECOND]:
            score = dict(zip(sides, numbers, strict=True))
            higher = max(score, key=lambda side: score[side])
            if mark != (higher if numbers[0] != numbers[1] else TIE) and mark in (TIE, *sides):
                return numbers[0] != numbers[1] or mark == TIE
    return False


def disowns(text: str) -> bool:
    """Whether a sentence makes the verdict after it somebody else's, or no verdict."""
    words = lower_words(text)
    doubted = words & (BLAME | RETRACTIONS) or _denies(text)
    pretends = words & PRETENCES or (words & VERDICT_NOUNS and doubted)
    return bool(pretends or HEDGE.search(text.rstrip(" .!:")))


def is_rival(text: str, mark: str) -> bool:
    """Whether a sentence says hardly more than another side, or than not this one, or neither.

    Reasons after "because" do not matter, nor what a side is better than.
    """
    if _BETTER_ELSEWHERE.search(text) and mark not in named_sides(text):
        return True
    because = BECAUSE.search(text)
    reasoned = because and because.start() and not _CONTRAST.search(text, because.end())
    claim = _NO_DOUBT.sub("", text[: because.start()] if because and reasoned else text)
    claim = claim.rpartition("<")[2] if "<" in claim else _LOSES.split(claim)[0]
    words, names = lower_words(claim), named_sides(claim)
    equal = bool(words & EQUALITY)
    if words & CONDITIONS - {"could"}:  # what "could be better" is no rival
        rival = bool(names)
    elif _denies(claim):
        rival = mark in names or (not names and (mark != TIE or equal))
    elif names == {mark} and mark != TIE and words & BLAME:
        return _says_nothing(claim, BLAME)
    else:
        rival = bool(names - {mark}) or (mark != TIE and equal)
    if names and mark not in names and words & PRAISE and _CONCLUDES.match(claim):
        return rival
    return rival and _says_nothing(claim, BLAME if equal else frozenset())


def turns(text: str, mark: str) -> bool:
    """Whether a sentence beside a verdict may take it back.

    So does one that asks or reconsiders; that names the other side and no more, or praises what is
    not this side by name; that denies praise; that blames what is not the other side.
    """
    words, names = lower_words(text), named_sides(text)
    others, praises, says_nothing = names - {mark}, words & PRAISE, _says_nothing(text)
    parts = [(lower_words(part), named_sides(part)) for part in _SUBJECT_END.split(text)]
    return bool(
        "?" in text
        or words & RETRACTIONS
        or (others and (says_nothing or _WISH.search(text)))
        or (
            others
            and _says_nothing(last := re.split("[,:;]", text)[-1])
            and named_sides(last) - {mark}
        )
        or (mark == TIE and len(others) == 1 and words & (BLAME | PRAISE))
        or (mark != TIE and _levels(text))
        or (others and any(said & PRAISE and named != {mark} for said, named in parts))
        or (_denies(text) and (praises or says_nothing or mark in names))
        or _blames(text, mark)
    )


def _levels(text: str) -> bool:
    """Whether a sentence says no more than that both sides are equal, or both win."""
    words = lower_words(text)
    both_win = words & {"both", "each"} and words & PRAISE and not named_sides(text)
    return bool(words & EQUALITY or both_win) and not _denies(text) and _says_nothing(text, BLAME)


def _blames(text: str, mark: str) -> bool:
    """Whether part of a sentence blames what is not, by name or as the subject so far, another."""
    subject: set[str] = set()
    for part in _SUBJECT_END.split(text):
        if named := named_sides(part):
            subject = named
        elif first_word(part) in PRONOUNS:
            subject = set()
        if lower_words(part) & BLAME and not subject - {mark}:
            return True
    return False


def _denies(text: str) -> bool:
    """Whether a sentence negates or sets a condition."""
    words = lower_words(text)
    return bool(words & (NEGATIONS | CONDITIONS)) or any(word.endswith("n't") for word in words)


def _says_nothing(text: str, besides: Set[str] = frozenset()) -> bool:
    """Whether a sentence has no word of substance besides the names of sides and some words."""
    rest = _ORDINAL.sub(" ", SIDE_NAME.sub(" ", ANY_MARK.sub(" ", text)))
    if any(letter.isalpha() and not letter.isascii() for letter in rest):
        return False
    words = lower_words(rest) - besides
    left = words - VERDICT_WORDS - TIE_WORDS - NEGATIONS - CONDITIONS - FUNCTION_WORDS
    return all(word.endswith("n't") for word in left)


def first_word(text: str) -> str:
    """The first word in lower case, or a mark that comes first."""
    found = re.search(rf"[{MARKS}]|\w+(?:'\w+)?", text)
    return found[0].lower() if found else ""


def named_sides(text: str) -> set[str]:
    """The sides that a text names, in the judge's form or as "assistant A", "the other", "B"."""
    return set(_sides(text)) | ({"other"} if re.search(r"\bother\b", text, re.I) else set())


def _sides(text: str) -> list[str]:
    """The same in the order of the text, without "the other"."""
    found = [(mark.start(), mark[0]) for mark in ANY_MARK.finditer(text)]
    for name in SIDE_NAME.finditer(text):
        letter = (name[1] or name[2] or name[3]).lower()
        found.append((name.start(), FIRST if letter in "a1" else SECOND))
    for name in _ORDINAL.finditer(text):
        if name[1] or name[2]:
            found.append((name.start(), FIRST if name[1] else SECOND))
    return [side for _, side in sorted(found)]


def lower_words(text: str) -> set[str]:
    """The English words of a text."""
    return set(map(str.lower, ENGLISH_WORD.findall(text)))
