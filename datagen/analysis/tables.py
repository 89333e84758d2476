"""The numbers of `stats.json` as rows of text, for the page and the dataset card."""

from collections.abc import Sequence
from typing import Any

from common.reports.charts import percentage
from common.reports.page import TableRow, number
from datagen.analysis.labels import LABEL_FIELDS
from datagen.analysis.measures import NEAR_DUPLICATE, TEXT_FIELDS

Stats = dict[str, Any]

CHART_FIELDS = (*LABEL_FIELDS, "difficulty")


def summary_rows(stats: Stats) -> list[TableRow]:
    """Rows of a label and one text per set; the page and the dataset card show the same."""
    sets = list(stats["sets"].values())

    def row(label: str, *path: str) -> TableRow:
        return label, [number(_at(found, path)) for found in sets]

    def part(label: str, total: tuple[str, ...], *path: str) -> TableRow:
        return label, [
            f"{_at(s, path):,} ({percentage(_at(s, path), _at(s, total))})" for s in sets
        ]

    records = ("records",)
    asked = ("nearest", "queries")
    rows: list[TableRow] = [
        row("Records", "records"),
        part("Unique instructions", records, "unique_instructions"),
        part("Repeated up to case, punctuation", records, "repeated_folded"),
        part("Repeated with the same input", records, "repeated_with_the_same_input"),
        part("With input", records, "words", "input", "count"),
        part("With output", records, "words", "output", "count"),
        ("Words (median)", []),
        *(
            (text.capitalize(), [_median(found["words"][text]) for found in sets])
            for text in TEXT_FIELDS
        ),
        ("Diversity", []),
        part("With root verb and object", records, "verb_objects", "covered"),
        row("Distinct verb-object pairs", "verb_objects", "distinct"),
        row("Entropy of the pairs (bits)", "verb_objects", "entropy_bits"),
        row("Effective number of pairs", "verb_objects", "effective_number"),
    ]
    for field in CHART_FIELDS:
        name = f"Effective number: {field}"
        values = [
            number(s["labels"][field]["effective_number"])
            if s["labels"][field]["distinct"]
            else "no labels"
            for s in sets
        ]
        rows.append((name, values))
    size = number(sets[0]["vocabulary_of_equal_size"]["tokens"])
    rows.append((f"In {size} words of each set", []))
    rows.append(row("Type-token ratio", "vocabulary_of_equal_size", "type_token_ratio"))
    rows += [row(f"Distinct-{n}", "vocabulary_of_equal_size", f"distinct_{n}") for n in (2, 3)]
    rows.append(("ROUGE-L to the nearest other instruction", []))
    rows.append(row("Compared instructions", *asked))
    rows.append(row("Median", "nearest", "median"))
    rows.append(part(f"Over {NEAR_DUPLICATE}", asked, "nearest", "over_near_duplicate"))
    return rows


def _median(lengths: dict[str, Any]) -> str:
    return number(lengths["median"]) if lengths["count"] else "none"


def _at(found: Any, path: Sequence[str]) -> Any:
    for key in path:
        found = found[key]
    return found
