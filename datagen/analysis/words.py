"""Words: how they are counted, told apart and brought to the singular."""

import re

# Scripts written without spaces: each character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003fffd"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['’][^\W_{_UNSPACED}]+)*")
_ROUGE_TOKEN = re.compile("[a-z0-9]+")


def count(text: str) -> int:
    """Words between spaces; of Chinese, Japanese, Thai and their like, characters.

    >>> count("a beta-blocker, twice"), count("什么是糖尿病?")
    (3, 7)
    """
    return len(_WORD.findall(text))


def tokens(text: str) -> list[str]:
    """Words of any script without punctuation, in lower case.

    >>> tokens("The patient's X-ray: 什么")
    ['the', "patient's", 'x', 'ray', '什', '么']
    """
    return _TOKEN.findall(text.lower())


def rouge_tokens(text: str) -> list[str]:
    """rouge_score's tokens without stemming: runs of a-z and 0-9. Other scripts have none.

    >>> rouge_tokens("The patient's X-ray: 什么")
    ['the', 'patient', 's', 'x', 'ray']
    """
    return _ROUGE_TOKEN.findall(text.lower())


def singular(noun: str) -> str:
    """The singular of an English noun in lower case, by rules; singulars stay as they are.

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
    pair.split(":")
    for pair in (
        *("children:child", "women:woman", "men:man", "people:person", "feet:foot"),
        *("criteria:criterion", "phenomena:phenomenon", "bacteria:bacterium", "lives:life"),
        *("indices:index", "matrices:matrix", "appendices:appendix", "stimuli:stimulus"),
        *("aches:ache", "headaches:headache", "movies:movie", "calories:calorie"),
        *("series:series", "species:species", "always:always"),
    )
)
