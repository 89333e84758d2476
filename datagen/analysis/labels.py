"""Labels that teachers spell in many ways, counted under one name; singulars of English nouns.

AlpaCare's 167 seeds spell ten types in 28 ways: "Multiple-choice Q&A", "Multiple-Choice Q&A",
"Multiple Choice Q&A", "Rewrite", "Rewrites", "Rewriting", "Rewrite Task". Two spellings are one
label when their `key` is the same; the table below holds every rule.
"""

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

LABEL_FIELDS = ("type", "topic", "view")

TASK_TYPES = (
    "Open Q&A; Text Generation; Chat; Rewrite; Summarization; Classification; USMLE Style Q&A; "
    "Multiple-Choice Q&A; Single-Hop Reasoning; Multi-Hop Reasoning"
).split("; ")
"""The types in rule 4 of AlpaCare's prompt, shown as it spells them."""

EMPTY_WORDS = {
    "type": ("task",),
    "view": ("view", "perspective", "point of view", "viewpoint"),
}
"""Endings that add nothing: "Expert View" is the view "Expert"."""

SAME_WORDS = {
    "type": {
        "multiple hop": "multi hop",
        "open ended": "open",
        "rewriting": "rewrite",
        "summary": "summarization",
        "question answering": "q and a",
    },
}

_AMERICAN_SPELLINGS = {
    r"ae|oe": "e",
    r"isation\b": "ization",
    r"ising\b": "izing",
    r"our\b": "or",
    r"counsell": "counsel",
    r"dietician": "dietitian",
    r"tumour": "tumor",
}


def key(label: str, field: str) -> str:
    """A key that all spellings of one label share; for comparison only, not for display.

    Case, hyphens, quotation marks, plural, possessive, "&" and British spelling make no
    difference, nor do the words of `EMPTY_WORDS` and `SAME_WORDS`.

    >>> {key(x, "type") for x in ("Multiple-choice Q&A", "Multiple Choice Q & A")}
    {'multiple choice q and a'}
    >>> key("Patient’s Perspective", "view") == key("Patients", "view")
    True
    """
    text = unicodedata.normalize("NFKC", label).casefold().replace("&", " and ")
    text = re.sub(r"['’‘`]s?\b|['’‘`]", "", text)
    parts = re.sub(r"[\W_]+", " ", text).split()
    text = " ".join(map(singular, parts))
    for pattern, replacement in _AMERICAN_SPELLINGS.items():
        text = re.sub(pattern, replacement, text)
    for spelling, common in SAME_WORDS.get(field, {}).items():
        text = re.sub(rf"\b{spelling}\b", common, text)
    for ending in EMPTY_WORDS.get(field, ()):
        text = text.removesuffix(" " + ending)
    return text or label.strip()


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of one field in one set."""

    counts: dict[str, int]  # by key, most frequent first
    spellings: dict[str, dict[str, int]]  # by key: count by spelling
    missing: int  # records without one


def count(labels: Iterable[object], field: str) -> Labels:
    """Counts the labels of a field; None and blank ones are missing."""
    written = Counter("" if label is None else str(label).strip() for label in labels)
    missing = written.pop("", 0)
    keys = {spelling: key(spelling, field) for spelling in written}
    spellings: dict[str, dict[str, int]] = {}
    for spelling, number in sorted(written.items(), key=lambda item: (-item[1], item[0])):
        spellings.setdefault(keys[spelling], {})[spelling] = number
    counts = {name: sum(found.values()) for name, found in spellings.items()}
    counts = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return Labels(counts, spellings, missing)


def display_names(sets: Iterable[Labels], field: str) -> dict[str, str]:
    """Display name by key: the prompt's own, else the most frequent spelling in all sets."""
    written: dict[str, Counter[str]] = {}
    for labels in sets:
        for name, spellings in labels.spellings.items():
            written.setdefault(name, Counter()).update(spellings)
    known = {key(name, field): name for name in TASK_TYPES} if field == "type" else {}
    common = {
        name: min(found, key=lambda spelling: (-found[spelling], spelling))
        for name, found in written.items()
    }
    return common | {name: shown for name, shown in known.items() if name in common}


def singular(noun: str) -> str:
    """The singular of a lower-case English noun, by rules; singulars are unchanged.

    >>> [singular(x) for x in ("rewrites", "therapies", "boxes", "diagnoses", "analysis", "virus")]
    ['rewrite', 'therapy', 'box', 'diagnosis', 'analysis', 'virus']
    >>> [singular(x) for x in ("doses", "diseases", "hypotheses", "series", "children", "mass")]
    ['dose', 'disease', 'hypothesis', 'series', 'child', 'mass']
    """
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if len(noun) < 4 or not noun.endswith("s") or noun.endswith(("ss", "us", "is")):
        return noun
    if noun.endswith(("gnoses", "alyses", "theses", "crises", "rrhoses", "otheses")):
        return noun[:-2] + "is"
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    if noun.endswith(("sses", "xes", "ches", "shes", "viruses", "uses")):
        return noun[:-2] if noun not in ("uses", "causes") else noun[:-1]
    return noun[:-1]


_IRREGULAR = dict(
    re.findall(
        r"(\w+):(\w+)",
        """
    children:child women:woman men:man people:person feet:foot criteria:criterion always:always
    phenomena:phenomenon bacteria:bacterium lives:life indices:index matrices:matrix series:series
    appendices:appendix stimuli:stimulus aches:ache headaches:headache movies:movie species:species
    calories:calorie
    """,
    )
)
