"""The root verb of an instruction and its direct object: ("write", "summary").

With spaCy and one of its models installed, pairs are found as in Self-Instruct, Alpaca and
AlpaCare: the root of the first sentence if it is a verb, and its object if that is a noun, both as
lemmas. (Their notebooks follow only the first child of a token and so lose objects; here all
children are considered.)

Without spaCy, rules for instructions are used, which are mostly imperatives:

1. Take the first sentence. Skip polite openings ("Please", "Can you"), openings up to a comma or
   colon ("As a nurse,", "Given these symptoms,") and "Your task is to".
2. The next word must be one of `IMPERATIVE_VERBS`; "compare and contrast" counts as "compare".
3. The words up to the next preposition, conjunction, clause or punctuation mark form the object;
   its last word, in the singular, is the noun.

    please | write a brief summary | of | the article below.
    opening  verb          noun      end

Questions and statements have no pair under either method: AlpaCare's README reports 22 % of its
instructions with one. The share with a pair is therefore part of every result.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from common.sections import UsageError
from datagen.analysis.labels import singular

Pair = tuple[str, str]
PairFinder = Callable[[Sequence[str]], Iterable[Pair | None]]


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


IMPERATIVE_VERBS = _word_set(
    """
    act adapt add address advise advocate allocate analyse analyze annotate answer apply argue
    arrange articulate ask assemble assess assign assist assume brainstorm break build calculate
    categorise categorize change characterise characterize chart check choose cite clarify classify
    collect combine come comment compare compile complete compose compute condense conduct consider
    construct contrast convert convey correct counsel count create critique decide deduce define
    deliver demonstrate depict derive describe design detail detect determine develop devise
    diagnose differentiate discern discuss display distinguish divide draft draw edit elaborate
    elucidate emphasize encode engage enumerate establish estimate evaluate examine expand explain
    explore express extract extrapolate fill find fix format formulate gather generate give group
    guess guide help highlight hypothesize identify illustrate imagine implement improve include
    incorporate infer inform integrate interpret introduce investigate judge justify label link list
    locate make map mark match mention modify name narrate negotiate offer order organise organize
    outline paraphrase perform pick plan play predict prepare prescribe present prioritise
    prioritize produce propose prove provide quantify question rank rate read rearrange reason
    recall recast recommend reconstruct record reduce remove rephrase replace report research
    respond restate review revise reword rewrite role-play say select separate share show simplify
    simulate sketch solve sort specify split state structure study substitute suggest summarise
    summarize supply support take talk teach tell test trace transcribe transform translate turn
    update use utilize validate verify visualize weigh work write
    """
)
"""Verbs that instructions begin with; any other first word means no imperative."""

_POLITE_OPENING = re.compile(
    r"(please|kindly|now|next|then|first|also"
    r"|(can|could|would|will) you|i (want|need|would like) you to|let['’]?s|help me( to)?"
    r"|(your|the) (task|job|goal|role) (is|here is) to|you (are|have|need) (asked )?to|try to"
    r"|in your own words|briefly|clearly|concisely|accurately|critically|carefully|further|simply"
    r"|step by step|in detail)\b[\s,]*"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|[\n\r]")
_WORD_OR_MARK = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*|[^\w\s]")

_SKIPPED = _word_set("me us him her them briefly clearly concisely accurately for up out")
"""Between verb and object: recipients, adverbs and particles ("Come up with", "Write out")."""

_BETWEEN = _word_set("all both some any each every a an the this that these those")

_END = _word_set(
    """
    about above according across after against along among and as at based because before behind
    below between but by concerning considering describing despite detailing discussing due during
    explaining except featuring for from given has have highlighting how if in including into is are
    was were involving like near of off on or outlining over per regarding related showing since so
    than that through throughout to toward towards under until upon using versus via vs what when
    where whether which while who whom whose why will with within without be can could should would
    may might must do does did following it its he she they we you i them their there here not then
    such
    """
)
"""An object ends before any of these."""

_ADJECTIVES = _word_set("following given")
"""Words of `_END` that may begin an object: "Rewrite the given text"."""

_QUOTES = "\"'“”‘’"

_NO_NOUN = _word_set(
    "one ones two three four five ten it them someone somebody something anything each all some "
    "any more best most both this that these those other another first given following own such up "
    "came been sure"
)
"""Words that end a phrase and are no nouns: counted as no object."""


def by_rules(instruction: str) -> Pair | None:
    """(verb, object) by the rules above, or None.

    >>> by_rules("Please write a brief summary of the article below.")
    ('write', 'summary')
    >>> by_rules("As a nurse, explain the main side effects to a patient.")
    ('explain', 'effect')
    >>> by_rules("What causes fever?"), by_rules("Explain how insulin works.")
    (None, None)
    """
    sentence = _SENTENCE_END.split(instruction.strip(), maxsplit=1)[0].strip("\"'“”*#- ").lower()
    start = _imperative(sentence)
    if not start:
        return None
    verb, *rest = _WORD_OR_MARK.findall(start)
    if rest[:1] == ["and"] and rest[1:2] and rest[1] in IMPERATIVE_VERBS:
        rest = rest[2:]
    noun = _object(rest)
    return (verb, noun) if noun else None


def _imperative(sentence: str) -> str:
    """The sentence from its verb on; "" if it is no imperative."""
    parts = re.split(r"[,:]\s+", sentence)
    for first in range(len(parts)):
        start = ", ".join(parts[first:])
        while opening := _POLITE_OPENING.match(start):
            start = start[opening.end() :]
        found = _WORD_OR_MARK.match(start)
        if found and found.group() in IMPERATIVE_VERBS:
            return start
        if first == 0 and re.match(r"(what|why|how|who|which|is|are|do|does|i|my)\b", start):
            return ""  # a question or a story: a later verb is not its root
    return ""


def _object(following: Sequence[str]) -> str:
    """The last noun of the first noun phrase, in the singular; "" if there is none."""
    at = 0
    while at < len(following) and following[at] in _SKIPPED:
        at += 1
    if at and following[at - 1] == "up" and following[at : at + 1] == ["with"]:
        at += 1  # come up with
    phrase: list[str] = []
    for position in range(at, len(following)):
        word = following[position]
        if word in _BETWEEN and not phrase:
            continue
        if not phrase and (word.isdigit() or word in _QUOTES):
            continue
        adjective = word in _ADJECTIVES and not phrase
        plain = re.split("['’]", word)[0]  # you're
        if (plain in _END and not adjective) or not word[0].isalpha():
            break
        after = following[position + 1] if position + 1 < len(following) else "."
        if phrase and word.endswith(("ed", "ing")) and (after in _END or not after[0].isalpha()):
            break  # "the symptoms described below"
        phrase.append(word)
    noun = re.sub(r"['’]s?$", "", phrase[-1]) if phrase else ""
    if noun in _NO_NOUN or re.search(r"['’]", noun) or noun.endswith("ly") or not noun.isascii():
        return ""
    return singular(noun)


def choose_parser(parser: str, model: str) -> tuple[str, PairFinder]:
    """(name, function) of the parser for `parser`: auto, spacy or rules.

    Raises:
      UsageError: spaCy was requested, but it or its model is not installed.
    """
    if parser != "rules":
        try:
            import spacy

            return "spacy", partial(by_spacy, spacy.load(model, exclude=["ner"]))
        except (ImportError, OSError):  # OSError: no such model
            if parser == "spacy":
                raise UsageError(
                    f"spaCy or its model {model} is not installed; install both or use "
                    "--parser=rules"
                ) from None
    return "rules", partial(map, by_rules)


def by_spacy(pipeline: Any, instructions: Iterable[str]) -> Iterator[Pair | None]:
    """(verb, object) of each instruction's first sentence as the parser sees it, or None."""
    for document in pipeline.pipe(instructions):
        roots = (sentence.root for sentence in itertools.islice(document.sents, 1))
        pairs = (
            (root.lemma_.lower(), child.lemma_.lower())
            for root in roots
            for child in root.children
            if root.pos_ == "VERB" and child.dep_ in ("dobj", "obj") and child.pos_ == "NOUN"
        )
        yield next(pairs, None)


def count(pairs: Iterable[Pair | None]) -> Counter[Pair]:
    """Occurrences of each pair, most frequent first."""
    found = Counter(pair for pair in pairs if pair)
    return Counter(dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))))
