"""Root verb and direct object, by the rules and from a parse tree."""

import doctest
from types import SimpleNamespace

import pytest

from datagen.analysis import verb_objects


def test_examples_of_the_docstrings():
    assert doctest.testmod(verb_objects).failed == 0


@pytest.mark.parametrize(
    "instruction, pair",
    [
        ("Rewrite the given medical advice into simpler terms.", ("rewrite", "advice")),
        ("Could you please list the side effects of aspirin?", ("list", "effect")),
        ("Give me three examples of vaccines", ("give", "example")),
        ("Identify any 5 key characteristics of the software", ("identify", "characteristic")),
        ("Compare and contrast the mechanisms of two drugs.", ("compare", "mechanism")),
        ("Given the data below, estimate the dose", ("estimate", "dose")),
        ("Describe the symptoms described below.", ("describe", "symptom")),
        ("Classify the patient's symptoms into diseases", ("classify", "symptom")),
        ("\"Summarize the 'case report' for a nurse.\"", ("summarize", "report")),
    ],
)
def test_imperatives_have_a_pair(instruction, pair):
    assert verb_objects.by_rules(instruction) == pair


@pytest.mark.parametrize(
    "instruction",
    [
        "",
        "?!",
        "What is diabetes, explain the causes",
        "My mother takes aspirin. List its risks.",
        "Explain how insulin works.",
        "Describe it.",
        "Imagine you're a nurse.",
        "什么是糖尿病?",
    ],
)
def test_others_have_none(instruction):
    assert verb_objects.by_rules(instruction) is None


def token(pos, dep, lemma, *children):
    return SimpleNamespace(pos_=pos, dep_=dep, lemma_=lemma, children=children)


class Pipeline:
    """spaCy's interface as `by_spacy` uses it: pipe -> documents -> sents -> root."""

    def pipe(self, roots):
        for root in roots:
            yield SimpleNamespace(sents=iter([SimpleNamespace(root=root)] if root else []))


def test_all_children_of_the_root_are_seen():
    noun = token("NOUN", "dobj", "Summary")
    roots = [
        token("VERB", "ROOT", "Write", token("INTJ", "intj", "please"), noun),
        token("VERB", "ROOT", "write", token("PRON", "dobj", "it")),
        token("NOUN", "ROOT", "question", noun),
        None,
    ]
    found = list(verb_objects.by_spacy(Pipeline(), roots))
    assert found == [("write", "summary"), None, None, None]


def test_counts_are_sorted():
    pairs = [("b", "x"), None, ("a", "y"), ("b", "x"), ("a", "x")]
    expected = [(("b", "x"), 2), (("a", "x"), 1), (("a", "y"), 1)]
    assert list(verb_objects.count(pairs).items()) == expected


def test_spacy_asked_for_and_not_there():
    with pytest.raises(ValueError, match="--parser=rules"):
        verb_objects.choose_parser("spacy", "no_such_model")
    name, parse = verb_objects.choose_parser("auto", "no_such_model")
    assert (name, list(parse(["Write a note."]))) == ("rules", [("write", "note")])
