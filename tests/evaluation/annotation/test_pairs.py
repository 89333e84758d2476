"""Which pairs annotators get: drawn at random, balanced, and blind."""

import collections
import dataclasses
import json
import re

import numpy as np
import pytest

from evaluation.annotation import page
from evaluation.annotation.pairs import AnswerPair, assign, draw_items, read_key
from evaluation.inputs.benchmarks import Item
from evaluation.inputs.outputs import ModelOutput

SYSTEMS, REFERENCES = ("Zephyrine-7b", "Quixotal"), ("Oraculum",)


def make_pairs(count=30):
    pairs = []
    for number in range(count):
        item = Item(f"i{number}", "Cardiobench", f"Question {number}?", "")
        answers = {
            name: ModelOutput(item.benchmark, item.id, name, f"Text {place} of {number}.</script>")
            for place, name in enumerate((*SYSTEMS, *REFERENCES))
        }
        pairs += [AnswerPair(item, answers[s], answers[r]) for s in SYSTEMS for r in REFERENCES]
    return pairs


def test_every_item_has_the_same_chance_whatever_the_judge_said():
    names = [f"i{n}" for n in range(20)]
    scores = np.repeat([0.0, 0.5, 1.0], [12, 4, 4])
    counts = collections.Counter()
    for seed in range(2000):
        chosen = draw_items(names, scores, 5, np.random.default_rng(seed))
        assert len(set(chosen)) == 5
        assert [scores[names.index(name)] for name in chosen].count(0.0) == 3, "of 5, 12 / 20"
        counts.update(chosen)
    assert min(counts.values()) > 400
    assert max(counts.values()) < 600
    assert draw_items(names, scores, 99, np.random.default_rng(0)) == names


def test_pairs_are_shared_out_evenly_and_sides_change():
    pairs = make_pairs(30)
    key = assign(pairs, ["ann", "ben", "cy"], overlap=2, seed=3)
    assigned = list(key.assignments.values())
    assert collections.Counter(a.annotator for a in assigned) == {"ann": 40, "ben": 40, "cy": 40}
    by_pair = collections.defaultdict(list)
    for one in assigned:
        by_pair[one[1:5]].append(one)
    assert len(by_pair) == len(pairs)
    for both in by_pair.values():
        assert len({one.annotator for one in both}) == 2
        assert {one.first for one in both} == {"model", "reference"}
    first = sum(a.first == "model" for a in assigned if a.annotator == "ann")
    assert 10 < first < 30
    order = [a.item for a in assigned if a.annotator == "ann"]
    assert order != sorted(order)
    assert assign(pairs, ["ann", "ben", "cy"], overlap=2, seed=3) == key
    assert not set(assign(pairs, ["ann"], 1, 4).assignments) & set(key.assignments)


def test_the_page_names_no_system_and_its_ids_mean_nothing():
    """Each row of the page shows the texts that the key names, and nothing else of them."""
    pairs = make_pairs()
    key = assign(pairs, ["ann", "ben"], overlap=1, seed=987654321987)
    html = page.build(key, pairs)
    for name in (*SYSTEMS, *REFERENCES, "Cardiobench", "model_first", str(key.seed)):
        assert name not in html
    assert not re.search(r"\bi\d+\b", html), "nor ids of items"
    assert html == page.build(key, pairs)
    assert html.count("</script>") == 2, "no text closes its element"
    content = json.loads(re.search(r"id=pairs>(.*?)</script>", html, re.DOTALL)[1])
    rows = [row for rows in content["annotators"].values() for row in rows]
    assert {row[0] for row in rows} == set(key.assignments)
    for name, question, first, second in rows:
        shown = key.assignments[name]
        (pair,) = [
            p for p in pairs if p.item.id == shown.item and p.model.generator == shown.generator
        ]
        texts = [pair.model.output, pair.reference.output]
        expected = texts if shown.first == "model" else texts[::-1]
        assert [content["texts"][i] for i in (question, first, second)] == [
            pair.item.text,
            *expected,
        ]
    references = {content["texts"].index(p.reference.output) for p in pairs}
    halves = sum(place < len(content["texts"]) / 2 for place in references)
    assert 5 < halves < 25, "the place of a text does not give its author away"


def test_a_key_that_was_edited(tmp_path):
    key = assign(make_pairs(2), ["ann"], overlap=1, seed=1)
    path = tmp_path / "key.json"
    path.write_text(json.dumps(key.record()))
    assert read_key(path) == key
    record = key.record()
    one = next(iter(record["assignments"].values()))
    one["first"] = "model" if one["first"] == "reference" else "reference"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="was changed since"):
        read_key(path)
    path.write_text('{"form": "another"}')
    with pytest.raises(ValueError, match="not a key"):
        read_key(path)


def test_the_digest_follows_every_text():
    pair = make_pairs(1)[0]
    other = pair._replace(model=dataclasses.replace(pair.model, output="Edited."))
    asked = pair._replace(item=dataclasses.replace(pair.item, instruction="Another?"))
    assert len({pair.digest, other.digest, asked.digest}) == 3
