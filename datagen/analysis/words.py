"""Words: counting them, and singulars of English nouns."""

import re

# Scripts written without spaces: each character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003fffd"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def count_words(text: str) -> int:
    """Words between spaces; characters in Chinese, Japanese, Thai and other unspaced scripts.

    >>> count_words("a beta-blocker, twice"), count_words("什么是糖尿病?")
    (3, 7)
    """
    return len(_WORD.findall(text))


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
        children:child women:woman men:man people:person feet:foot criteria:criterion
        phenomena:phenomenon bacteria:bacterium lives:life indices:index matrices:matrix
        appendices:appendix stimuli:stimulus aches:ache headaches:headache movies:movie
        calories:calorie series:series species:species always:always
        """,
    )
)
