"""The content of `stats.json`: measures of one or several instruction sets."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from common.jsonl import Record
from common.messages import log
from common.records import MAX_DIFFICULTY, difficulty
from common.text.rouge import TOKENIZERS, unicode_tokens
from datagen.analysis import diversity, labels, verb_objects

TEXT_FIELDS = ("instruction", "input", "output")
SUNBURST_VERBS, SUNBURST_OBJECTS = 20, 4  # as in Self-Instruct and AlpaCare
NEAR_DUPLICATE = 0.7  # ROUGE-L F above which `datagen.tasks` and `dedup` drop texts by default
NEAREST_EDGES = [i / 20 for i in range(20)]


def measure(
    sets: dict[str, list[Record]],
    find_pairs: verb_objects.PairFinder,
    *,
    parser: str,
    queries: int,
    seed: int,
    tokenizer: str,
) -> dict[str, Any]:
    """All measures of each named set, with bins and label names shared so that sets compare.

    Args:
      find_pairs: verb and object of each instruction.
      parser: its name, for the record.
      queries: instructions of a set that are compared with all others; 0 means every one.
      seed: draws these, and the order in which sets are cut to equal size.
      tokenizer: key of TOKENIZERS, for the comparison. The vocabulary is measured in
        `unicode_tokens` always, which for ASCII are the tokens of both.
    """
    lengths = {
        field: {name: _lengths(records, field) for name, records in sets.items()}
        for field in TEXT_FIELDS
    }
    edges = {
        field: diversity.word_edges([n for found in lengths[field].values() for n in found])
        for field in TEXT_FIELDS
    }
    tokens = {}
    for name, records in sets.items():
        texts = [unicode_tokens(record["instruction"]) for record in records]
        tokens[name] = random.Random(seed).sample(texts, len(texts))
    smallest = min(sum(map(len, texts)) for texts in tokens.values())
    label_counts = _labels(sets)
    measured = {}
    for name, records in sets.items():
        log(f"{name}: {len(records):,} records")
        tasks = [(record["instruction"], record["input"]) for record in records]
        instructions = [instruction for instruction, _ in tasks]
        log(f"{name}: nearest neighbours")
        nearest = diversity.nearest(
            instructions, queries=queries, seed=seed, tokenize=TOKENIZERS[tokenizer]
        )
        log(f"{name}: verbs and objects")
        pairs = verb_objects.count(find_pairs(instructions))
        measured[name] = {
            "records": len(records),
            **diversity.duplicates(tasks),
            "words": {
                field: diversity.length_summary(found[name])
                | {"histogram": diversity.histogram(found[name], edges[field])}
                for field, found in lengths.items()
            },
            "verb_objects": _verb_objects(pairs, len(records)),
            "vocabulary": diversity.vocabulary(tokens[name]),
            "vocabulary_of_equal_size": diversity.vocabulary(tokens[name], smallest),
            "nearest": _nearest(*nearest),
            "labels": {field: by_set[name] for field, by_set in label_counts.items()},
        }
    return {
        "settings": {
            "verb_object_parser": parser,
            "nearest_queries": queries,
            "nearest_tokenizer": tokenizer,
            "seed": seed,
            "near_duplicate": NEAR_DUPLICATE,
        },
        "word_edges": edges,
        "nearest_edges": NEAREST_EDGES,
        "sets": measured,
    }


def _lengths(records: Sequence[Record], field: str) -> list[int]:
    """Words of each text that is not blank."""
    texts = (record.get(field) or "" for record in records)
    return [diversity.count_words(text) for text in texts if text.strip()]


def _verb_objects(pairs: Counter[verb_objects.Pair], records: int) -> dict[str, Any]:
    verbs: Counter[str] = Counter()
    objects: dict[str, dict[str, int]] = {}
    for (verb, noun), count in pairs.items():
        verbs[verb] += count
        objects.setdefault(verb, {})[noun] = count
    shown = []
    for verb, count in sorted(verbs.items(), key=lambda item: (-item[1], item[0]))[:SUNBURST_VERBS]:
        top = dict(list(objects[verb].items())[:SUNBURST_OBJECTS])
        shown.append({"verb": verb, "count": count, "objects": top})
    covered = pairs.total()
    return {
        "covered": covered,
        "coverage": covered / records,
        **diversity.indices(pairs.values()),
        "verbs": len(verbs),
        "top": shown,
    }


def _nearest(scores: Sequence[float], without_tokens: int) -> dict[str, Any]:
    median, p95 = np.percentile(scores, [50, 95]).tolist() if scores else (0.0, 0.0)
    return {
        "queries": len(scores),
        "without_tokens": without_tokens,
        "mean": sum(scores) / len(scores) if scores else 0.0,
        "median": median,
        "p95": p95,
        "over_near_duplicate": sum(score > NEAR_DUPLICATE for score in scores),
        "identical": sum(score == 1 for score in scores),
        # The last edge is 0.95, so 1.0 falls into the last bin.
        "histogram": diversity.histogram(scores, NEAREST_EDGES),
    }


def _labels(sets: dict[str, list[Record]]) -> dict[str, dict[str, Any]]:
    """By field, then set: values (name, count, spellings), number missing, diversity indices."""
    result: dict[str, dict[str, Any]] = {}
    for field in labels.LABEL_FIELDS:
        counted = {
            name: labels.count((record.get(field) for record in records), field)
            for name, records in sets.items()
        }
        shown = labels.display_names(counted.values(), field)
        result[field] = {
            name: {
                "missing": found.missing,
                **diversity.indices(found.counts.values()),
                "spelled": sum(map(len, found.spellings.values())),
                "values": [
                    {"name": shown[key], "count": count, "spellings": found.spellings[key]}
                    for key, count in found.counts.items()
                ],
            }
            for name, found in counted.items()
        }
    result["difficulty"] = {
        name: _difficulties(record.get("difficulty") for record in records)
        for name, records in sets.items()
    }
    return result


def _difficulties(written: Iterable[object]) -> dict[str, Any]:
    """Levels 1 to 5; anything else counts as missing."""
    levels = Counter(map(difficulty, written))
    values = [{"name": str(i), "count": levels[i]} for i in range(1, MAX_DIFFICULTY + 1)]
    counts = [value["count"] for value in values if value["count"]]
    return {"missing": levels[None], **diversity.indices(counts), "values": values}
