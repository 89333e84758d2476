"""Answers that send the reader to immediate care, recognized by their words, in English."""

import re

_NOW = (
    r"(?:immediate(?:ly)?|urgent(?:ly)?|prompt(?:ly)?|emergency|right away|at once|without delay"
    r"|as soon as possible|asap)"
)
_CARE = (
    r"(?:medical|attention|care|help|evaluat\w+|assess\w+|treat\w+|hospital\w*|doctors?|physicians?"
    r"|clinicians?|surg\w+|referral|intervention|admission)"
)
_URGENT = re.compile(
    r"\b(?:(?:call|dial|ring|phone) (?:\w+ ){0,3}?(?:911|999|112|108|000|ambulances?|emergency)"
    r"|emergency (?:room|department|services?|medical|care|number|line|surgery|treatment)"
    r"|medical emergency|nearest (?:hospital|emergency)"
    rf"|{_NOW},? (?:\w+ ){{0,3}}?{_CARE}|{_CARE} (?:\w+ ){{0,2}}?{_NOW})\b|\bA&E\b|\bthe ER\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\b(?:not?|never|without|rarely|unlikely|isn['’]t|doesn['’]t|don['’]t)\b.{0,30}$",
    re.IGNORECASE,
)
_WORDS = tuple(
    "emergency immediate urgent prompt ambulance asap 911 999 112 108 000 a&e".split()
    + [
        "right away",
        "at once",
        "without delay",
        "as soon as possible",
        "nearest hospital",
        "the er",
    ]
)
"""One of these is in whatever is urgent; looking for them first takes a twentieth of the time."""


def urges_care(text: str) -> bool:
    """Whether a text sends its reader to care at once: a heuristic, not a judgement.

    >>> urges_care("Call 911."), urges_care("You should seek immediate medical attention.")
    (True, True)
    >>> urges_care("See a doctor as soon as possible."), urges_care("See your doctor next week.")
    (True, False)
    >>> urges_care("This is not a medical emergency."), urges_care("Emergency contraception works.")
    (False, False)
    """
    if not any(word in text.lower() for word in _WORDS):
        return False
    for sentence in re.split(r"[.!?\n]", text):
        if any(word in sentence.lower() for word in _WORDS):
            found = _URGENT.search(sentence)
            if found and not _DENIED.search(sentence[: found.start()]):
                return True
    return False
