"""Whether a reply states one verdict as final. docs/judging.md has the rule in steps.

`parsers` puts a mark wherever the form of a judge names a verdict. From there on the rule is the
same for every form, and for a tie as for a win. A sentence states a verdict if it consists of

    clauses that lead to it,  one mark among verdict words,  reasons
    Based on accuracy,        <first> is the better choice   because it names the dose.

A reply is read if all such sentences agree, nothing after the last of them takes it back, and
nothing before it makes it somebody else's. Lists of allowed words decide what states a verdict and
how a reason begins, so that what no list foresees makes a reply invalid, not a verdict.
"""

import dataclasses
import re
from collections.abc import Iterator, Set

from evaluation.judging.vocabulary import (
    ASIDES,
    BLAME,
    CLAUSE_OPENERS,
    CONDITIONS,
    EQUALITY,
    FUNCTION_WORDS,
    LEADS,
    NEGATIONS,
    PRAISE,
    PRETENCES,
    QUESTION_OPENERS,
    REASON_OPENERS,
    RETRACTIONS,
    TIE_WORDS,
    VERDICT_NOUNS,
    VERDICT_WORDS,
)

FIRST, SECOND, TIE = MARKS = "\ue000\ue001\ue002"
"""Private characters of Unicode, removed from what judges write."""

_MAX_SENTENCE = 2000  # characters

_MARK = re.compile(f"[{MARKS}]")
_NAME = re.compile(
    r"\b(?:assistant|answer|candidate|model|option|output|response)\s+\(?([ab])\b\)?"
    r"|\b((?-i:[AB])|[ab](?=\s*(?:[^\w\s]|$)))\b",
    re.IGNORECASE,
)
_TITLE = re.compile(rf"^#.*[{FIRST}{SECOND}]|[{FIRST}{SECOND}]\s*:")
_ORDINAL = re.compile(r"\b(?:(first|former)|(second|latter)|other)\b", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*", re.IGNORECASE)
_LEAD = re.compile(rf"(?:{LEADS})\b", re.IGNORECASE)
_SUBJECT = rf"answer|assistant|both|it|it's|its|neither|output|response|they|this|[{MARKS}]"
_BECAUSE = re.compile(
    rf"\bbecause\b|\bfor(?=\s+(?:it|it's|its)\b)|\bas(?=\s+(?:{_SUBJECT})(?!\w))"
    rf"|\bsince(?=\s+(?:the|{_SUBJECT})(?!\w))",
    re.IGNORECASE,
)
_BOTH = re.compile(rf"(?:\bboth )?(?:{FIRST} (?:and|&) {SECOND}|{SECOND} (?:and|&) {FIRST})", re.I)
_NEITHER = re.compile(
    r"\bneither (?:(?:answer|assistant|of (?:them|the two)|one|output|response) )?is (?:clearly )?"
    r"better(?: than the other)?\b",
    re.IGNORECASE,
)
_CONJUNCTION = re.compile(r"^\s*(?:(?:and|but|so|then|yet)\s+)?", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[,:;—]|\s[-–]+\s")
_SUBJECT_END = re.compile(
    r"[,:;—]|\s[-–]+\s|\b(?:although|and|but|than|though|unlike|whereas|while)\b", re.IGNORECASE
)
_HARMLESS = frozenset(" \t.,:;\"'#_-–—…✅✔🏆👉")
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Full-width form -> ASCII. Other look-alikes, such as ª, are letters of their own."""

_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufe0e\ufe0f\ufeff]")
_TAG = re.compile(r"</?(?:answer|b|choice|decision|final|final_answer|i|p|strong|verdict)>", re.I)
_SENTENCE_END = re.compile(rf"[.!?…][\"')]*(?:\s+|$)|[。।]|[{MARKS}]\s+(?=[A-Z])")
_NO_SENTENCE_END = re.compile(r"(?:^\W*\d+|\b(?:e\.g|i\.e|vs|cf|viz|dr|mr|mrs|approx))\.$", re.I)
_LIST_ITEM = re.compile(r"\s*(?:-\s|\d+[.)]\s|(?P<name>[A-Z][A-Za-z ]{2,30}):\s*\S)")
_BREAKS_OFF = re.compile(
    r"(?:[,:;(—–-]|\b(?:and|answer|anything|are|as|be|but|choose|is|like|neither|never|no|nor|not|"
    r"of|or|say|says|than|that|to|was|with|write))\W*$",
    re.IGNORECASE,
)


def plain(reply: str) -> str:
    """The text without markup and invisible characters, full-width forms made ASCII.

    >>> plain("**［［Ａ］］**\\u200b, it’s `safer`")
    "[[A]], it's safer"
    """
    text = _MARK.sub("\ufffd", reply.replace("\u037e", "?"))  # a Greek question mark
    text = _INVISIBLE.sub("", text).translate(_FULL_WIDTH)
    text = re.sub(r"[^\S\n]", " ", text)  # no-break and other spaces
    text = re.sub("[‘’]", "'", re.sub("[“”„«»]", '"', text))
    text = re.sub(r"```(?:json\b|markdown\b|text\b)?", "\n", text)
    text = re.sub(r"^[ \t]*[*•][ \t]+", "- ", text, flags=re.MULTILINE)
    text = re.sub(r"[*`]|\\(?=[\[\]()_])|(?<!\w)_{1,3}|_{1,3}(?!\w)", "", text)
    return _TAG.sub("", text).strip()


@dataclasses.dataclass(frozen=True)
class _Sentence:
    text: str
    ended: bool  # False: it continues in the next line
    quoted: bool  # it begins inside a quotation


def _sentences(text: str) -> Iterator[_Sentence]:
    quotes = 0
    for line in text.split("\n"):
        pieces, start = [], 0
        for gap in _SENTENCE_END.finditer(line):
            end = gap.end()
            if not _NO_SENTENCE_END.search(line[max(start, end - 12) : end].rstrip()):
                pieces.append(line[start:end].strip())
                start = end
        pieces.append(line[start:].strip())
        item = _LIST_ITEM.match(line)
        is_item = item and not (item["name"] and _is_plain(item["name"]))
        for piece in pieces:
            if _HARMLESS.issuperset(piece):
                continue  # blank, or a rule
            says_enough = ":" in piece or len(piece.split()) > 3
            is_whole = is_item and says_enough and not _BREAKS_OFF.search(piece)
            ended = _SENTENCE_END.search(piece) or is_whole
            yield _Sentence(piece, bool(ended), quotes % 2 == 1)
            quotes += piece.count('"')


def verdict(text: str) -> str:
    """The mark of the verdict that a text with marks states; "" where there is none.

    >>> verdict(f"Based on accuracy, {FIRST} is better.") == FIRST
    True
    >>> verdict(f"{FIRST} is better. It names the dose.") == FIRST
    True
    >>> verdict(f"{FIRST} is not better."), verdict(f"{FIRST}? Yes."), verdict(f"{FIRST} {SECOND}")
    ('', '', '')
    >>> verdict(f"{FIRST} is better. It was a joke."), verdict(f"{FIRST}. No, wait.")
    ('', '')
    """
    text = _NEITHER.sub("both are equal", _BOTH.sub("both outputs", text))
    sentences = list(_sentences(text))
    titles = {FIRST, SECOND} <= _names(text)
    stated: dict[int, str] = {}
    begun = ""  # a sentence that earlier lines began
    for number, sentence in enumerate(sentences):
        whole = f"{begun} {sentence.text}".strip()
        is_title = titles and _TITLE.search(whole)
        mark = "" if sentence.quoted or is_title else _stated(whole)
        if mark:
            stated[number] = mark
        begun = "" if mark or sentence.ended else whole[-_MAX_SENTENCE:]
    if len(set(stated.values())) != 1:
        return ""
    last, mark = max(stated.items())
    before, after = sentences[:last], sentences[last + 1 :]
    if any(_is_rival(s.text, mark) for s in before if not (titles and _TITLE.search(s.text))):
        return ""
    if before and _disowns(before[-1].text):
        return ""
    for text in (sentence.text for sentence in after):
        if not _begins_reason(text) or _turns(text, mark) or _lower_words(text) & ASIDES:
            return ""
    return mark


def _stated(sentence: str) -> str:
    """The mark that a sentence states as the verdict; "" if it states none."""
    found = _MARK.search(sentence)
    if not found or "?" in sentence or sentence.count('"') % 2 or len(sentence) >= _MAX_SENTENCE:
        return ""
    because = _BECAUSE.search(sentence, found.end())
    body = sentence[: because.start()] if because else sentence
    reasons = sentence[because.end() :] if because else ""
    leads, core = [], ""
    clauses = [_CONJUNCTION.sub("", clause) for clause in _CLAUSE_END.split(body)]
    for number, clause in enumerate(clauses):
        has_mark = bool(_MARK.search(core))
        if not has_mark and _LEAD.match(clause) and not _is_plain(clause, ties=False):
            leads.append(clause)
        elif _is_plain(clause) and not _asks(clause):
            core += f" {clause}"
        elif has_mark and _begins_reason(clause, CLAUSE_OPENERS):
            reasons = "; ".join([", ".join(clauses[number:]), reasons])
            break
        else:
            return ""
    marks = set(_MARK.findall(core))
    if len(marks) != 1 or _names(core) != marks:
        return ""
    (mark,) = marks
    if mark != TIE and _lower_words(core) & TIE_WORDS:
        return ""
    for lead in leads:
        words = _lower_words(lead)
        if words & CONDITIONS or _turns(lead, mark) or (mark != TIE and words & EQUALITY):
            return ""
    return "" if any(_turns(reason, mark) for reason in reasons.split(";")) else mark


def _disowns(text: str) -> bool:
    """Whether a sentence makes the verdict after it somebody else's, or no verdict."""
    words = _lower_words(text)
    doubted = words & (BLAME | RETRACTIONS) or _denies(text)
    return bool(words & PRETENCES or (words & VERDICT_NOUNS and doubted))


def _is_rival(text: str, mark: str) -> bool:
    """Whether a sentence says hardly more than another side, or than not this one."""
    names = _names(text)
    rival = mark in names if _denies(text) else names - {mark}
    return bool(rival) and _says_nothing(text)


def _turns(text: str, mark: str) -> bool:
    """Whether a sentence beside a verdict may take it back.

    So does one that asks or reconsiders; that names the other side and no more, or praises what is
    not this side by name; that denies praise; that blames what is not the other side.
    """
    words, names = _lower_words(text), _names(text)
    others, praises, says_nothing = names - {mark}, words & PRAISE, _says_nothing(text)
    parts = [(_lower_words(part), _names(part)) for part in _SUBJECT_END.split(text)]
    return bool(
        "?" in text
        or words & RETRACTIONS
        or (others and says_nothing)
        or (others and any(said & PRAISE and named != {mark} for said, named in parts))
        or (_denies(text) and (praises or says_nothing or mark in names))
        or any(said & BLAME and not named - {mark} for said, named in parts)
    )


def _denies(text: str) -> bool:
    """Whether a sentence negates or sets a condition."""
    words = _lower_words(text)
    return bool(words & (NEGATIONS | CONDITIONS)) or any(word.endswith("n't") for word in words)


def _says_nothing(text: str) -> bool:
    """Whether a sentence has no word of substance besides the names of sides."""
    words = _lower_words(_ORDINAL.sub(" ", _NAME.sub(" ", text)))
    left = words - VERDICT_WORDS - TIE_WORDS - NEGATIONS - CONDITIONS - FUNCTION_WORDS
    return all(word.endswith("n't") for word in left)


def _asks(clause: str) -> bool:
    """Whether a clause with a mark begins as questions and fragments do."""
    return bool(_MARK.search(clause)) and _first_word(clause) in QUESTION_OPENERS


def _begins_reason(text: str, openers: Set[str] = REASON_OPENERS) -> bool:
    """Whether a sentence or clause begins as reasons do."""
    return _first_word(text) in openers | set(MARKS)


def _first_word(text: str) -> str:
    found = re.search(rf"[{MARKS}]|\w+(?:'\w+)?", text)
    return found[0].lower() if found else ""


def _is_plain(text: str, *, ties: bool = True) -> bool:
    """Whether a text holds nothing but marks, names of sides, verdict words and punctuation."""
    text = re.sub(
        r"\(([\w' ]+)\)", r" \1 ", _MARK.sub(" ", re.sub(rf"(?<=[\w)\"{MARKS}])!+", "", text))
    )
    text = _NAME.sub(" ", text)
    allowed = VERDICT_WORDS | TIE_WORDS if ties else VERDICT_WORDS
    return _lower_words(text) <= allowed and _HARMLESS.issuperset(_WORD.sub("", text))


def _names(text: str) -> set[str]:
    """The sides that a text names, in the judge's form or as "assistant A", "the other", "B"."""
    named = set(_MARK.findall(text))
    for found in _NAME.finditer(text):
        named.add(FIRST if (found[1] or found[2]).lower() == "a" else SECOND)
    for found in _ORDINAL.finditer(text):
        named.add(FIRST if found[1] else SECOND if found[2] else "other")
    return named


def _lower_words(text: str) -> set[str]:
    return set(map(str.lower, _WORD.findall(text)))
