"""What `stats.json` holds: the measures of one or several instruction sets."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from common.jsonl import Record
from common.records import MAX_DIFFICULTY, difficulty
from datagen.analysis import diversity, verb_objects, words
from datagen.analysis import labels as label_names

TEXTS = ("instruction", "input", "output")
VERBS, OBJECTS = 20, 4  # of the sunburst, as in Self-Instruct and AlpaCare
NEAR_DUPLICATE = 0.7  # ROUGE-L F above which the pipeline drops an instruction
NEAREST_EDGES = [i / 20 for i in range(20)]
TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "rouge": words.rouge_tokens,
    "unicode": words.tokens,
}

Parser = Callable[[Sequence[str]], Iterable[verb_objects.Pair | None]]


def measure(
    sets: dict[str, list[Record]],
    parse: Parser,
    *,
    parser: str,
    queries: int,
    seed: int,
    tokenizer: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """All measures of each named set, comparable between them: bins and labels are common."""
    lengths = {
        text: {name: _lengths(records, text) for name, records in sets.items()} for text in TEXTS
    }
    edges = {
        text: diversity.word_edges([n for found in lengths[text].values() for n in found])
        for text in TEXTS
    }
    tokenized = {
        name: diversity.shuffled([words.tokens(r["instruction"]) for r in records], seed)
        for name, records in sets.items()
    }
    common = min(sum(map(len, texts)) for texts in tokenized.values())
    result = {
        "settings": {
            "verb_object_parser": parser,
            "nearest_queries": queries,
            "nearest_tokenizer": tokenizer,
            "seed": seed,
            "near_duplicate": NEAR_DUPLICATE,
        },
        "word_edges": edges,
        "nearest_edges": NEAREST_EDGES,
        "sets": {},
    }
    for name, records in sets.items():
        say(f"{name}: {len(records):,} records")
        tasks = [(record["instruction"], record["input"]) for record in records]
        instructions = [instruction for instruction, _ in tasks]
        say(f"{name}: nearest neighbours")
        near = diversity.nearest(
            instructions, queries=queries, seed=seed, tokenize=TOKENIZERS[tokenizer]
        )
        say(f"{name}: verbs and objects")
        result["sets"][name] = {
            "records": len(records),
            **diversity.duplicates(tasks),
            "words": {
                text: diversity.length_summary(lengths[text][name])
                | {"histogram": diversity.histogram(lengths[text][name], edges[text])}
                for text in TEXTS
            },
            "verb_objects": _verb_objects(verb_objects.count(parse(instructions)), len(records)),
            "vocabulary": diversity.vocabulary(tokenized[name]),
            "vocabulary_of_equal_size": diversity.vocabulary(tokenized[name], common),
            "nearest": _nearest(*near),
        }
    for field, by_set in _labels(sets).items():
        for name, labels in by_set.items():
            result["sets"][name].setdefault("labels", {})[field] = labels
    return result


def _lengths(records: Sequence[Record], text: str) -> list[int]:
    """Words of each text that is there."""
    found = (record.get(text) or "" for record in records)
    return [words.count(value) for value in found if value.strip()]


def _verb_objects(pairs: Counter[verb_objects.Pair], records: int) -> dict[str, Any]:
    verbs: Counter[str] = Counter()
    objects: dict[str, dict[str, int]] = {}
    for (verb, noun), count in pairs.items():
        verbs[verb] += count
        objects.setdefault(verb, {})[noun] = count
    shown = []
    for verb, count in sorted(verbs.items(), key=lambda item: (-item[1], item[0]))[:VERBS]:
        top = dict(list(objects[verb].items())[:OBJECTS])
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
        # The last edge is 0.95, so that 1 itself is in the last bin.
        "histogram": diversity.histogram(scores, NEAREST_EDGES),
    }


def _labels(sets: dict[str, list[Record]]) -> dict[str, dict[str, Any]]:
    """By field, then set: values (name, count, spellings), missing, and diversity indices."""
    result: dict[str, dict[str, Any]] = {}
    for field in label_names.FIELDS:
        found = {
            name: label_names.count((record.get(field) for record in records), field)
            for name, records in sets.items()
        }
        shown = label_names.display_names(found.values(), field)
        result[field] = {
            name: {
                "missing": labels.missing,
                **diversity.indices(labels.counts.values()),
                "spelled": sum(map(len, labels.spellings.values())),
                "values": [
                    {"name": shown[key], "count": count, "spellings": labels.spellings[key]}
                    for key, count in labels.counts.items()
                ],
            }
            for name, labels in found.items()
        }
    result["difficulty"] = {
        name: _difficulties(record.get("difficulty") for record in records)
        for name, records in sets.items()
    }
    return result


def _difficulties(written: Iterable[object]) -> dict[str, Any]:
    """Levels 1 to 5; what says no such number counts as missing."""
    levels = Counter(map(difficulty, written))
    values = [{"name": str(i), "count": levels[i]} for i in range(1, MAX_DIFFICULTY + 1)]
    counts = [value["count"] for value in values if value["count"]]
    return {"missing": levels[None], **diversity.indices(counts), "values": values}
