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

from evaluation.judging.contradictions import (
    ANY_MARK,
    ASIDE,
    BECAUSE,
    ENGLISH_WORD,
    FIRST,
    MARKS,
    SECOND,
    SIDE_NAME,
    TIE,
    disowns,
    first_word,
    is_rival,
    lower_words,
    named_sides,
    outscored,
    takes_back,
    turns,
)
from evaluation.judging.vocabulary import (
    CLAUSE_OPENERS,
    CONDITIONS,
    EQUALITY,
    LEADS,
    QUESTION_OPENERS,
    REASON_OPENERS,
    TIE_WORDS,
    VERDICT_WORDS,
)

_MAX_SENTENCE = 2000  # characters
_TITLE = re.compile(rf"^#.*[{FIRST}{SECOND}]|[{FIRST}{SECOND}]\s*:")
_LEAD = re.compile(rf"(?:{LEADS})\b", re.IGNORECASE)
_BOTH = re.compile(rf"(?:\bboth )?(?:{FIRST} (?:and|&) {SECOND}|{SECOND} (?:and|&) {FIRST})", re.I)
_NEITHER = re.compile(
    r"\bneither (?:(?:answer|assistant|of (?:them|the two)|one|output|response) )?is (?:clearly )?"
    r"better(?: than the other)?\b",
    re.IGNORECASE,
)
_CONJUNCTION = re.compile(r"^\s*(?:(?:and|but|so|then|yet)\s+)?", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[,:;—]|\s[-–]+\s")
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
    text = ANY_MARK.sub("\ufffd", reply.replace("\u037e", "?"))  # a Greek question mark
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
    titles = {FIRST, SECOND} <= named_sides(text)
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
    leading = [s.text for s in before if not (titles and _TITLE.search(s.text))]
    beside = [s.text for s in (*before, *after)]
    if any(is_rival(text, mark) for text in leading) or outscored(beside, mark):
        return ""
    if before and disowns(before[-1].text):
        return ""
    for text in (sentence.text for sentence in after):
        if not _begins_reason(text) or turns(text, mark) or ASIDE.search(text):
            return ""
    return mark


def _stated(sentence: str) -> str:
    """The mark that a sentence states as the verdict; "" if it states none."""
    found = ANY_MARK.search(sentence)
    if not found or "?" in sentence or sentence.count('"') % 2 or len(sentence) >= _MAX_SENTENCE:
        return ""
    because = BECAUSE.search(sentence, found.end())
    body = sentence[: because.start()] if because else sentence
    reasons = sentence[because.end() :] if because else ""
    leads, core = [], ""
    clauses = [_CONJUNCTION.sub("", clause) for clause in _CLAUSE_END.split(body)]
    for number, clause in enumerate(clauses):
        has_mark = bool(ANY_MARK.search(core))
        if not has_mark and _LEAD.match(clause) and not _is_plain(clause, ties=False):
            leads.append(clause)
        elif _is_plain(clause) and not _asks(clause):
            core += f" {clause}"
        elif has_mark and _begins_reason(clause, CLAUSE_OPENERS):
            reasons = "; ".join([", ".join(clauses[number:]), reasons])
            break
        else:
            return ""
    marks = set(ANY_MARK.findall(core))
    if len(marks) != 1 or named_sides(core) != marks:
        return ""
    (mark,) = marks
    if mark != TIE and lower_words(core) & TIE_WORDS:
        return ""
    for lead in leads:
        words = lower_words(lead)
        if words & CONDITIONS or turns(lead, mark) or (mark != TIE and words & EQUALITY):
            return ""
    if mark == TIE and len(named_sides(reasons)) == 1:
        return ""
    return "" if any(turns(reason, mark) for reason in reasons.split(";")) else mark


def contradicts(text: str, mark: str) -> bool:
    """Whether an explanation has a sentence that says that another side is better, or none.

    >>> contradicts("B is better because it names the dose.", FIRST), contradicts("B errs.", FIRST)
    (True, False)
    """
    texts = [sentence.text for sentence in _sentences(text)]
    return any(is_rival(text, mark) or takes_back(text) for text in texts)


def _asks(clause: str) -> bool:
    """Whether a clause with a mark begins as questions and fragments do."""
    return bool(ANY_MARK.search(clause)) and first_word(clause) in QUESTION_OPENERS


def _begins_reason(text: str, openers: Set[str] = REASON_OPENERS) -> bool:
    """Whether a sentence or clause begins as reasons do."""
    return first_word(text) in openers | set(MARKS)


def _is_plain(text: str, *, ties: bool = True) -> bool:
    """Whether a text holds nothing but marks, names of sides, verdict words and punctuation."""
    text = re.sub(rf"(?<=[\w)\"{MARKS}])!+", "", text)
    text = re.sub(rf"\(([\w' {MARKS}]+)\)", r" \1 ", text)
    text = ANY_MARK.sub(" ", SIDE_NAME.sub(" ", text))  # in this order: "a" before a mark is a name
    allowed = VERDICT_WORDS | TIE_WORDS if ties else VERDICT_WORDS
    return lower_words(text) <= allowed and _HARMLESS.issuperset(ENGLISH_WORD.sub("", text))
