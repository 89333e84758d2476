"""The numbers of `stats.json` as rows of text, for the page and the dataset card."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from datagen import charts
from datagen.set_stats import NEAR_DUPLICATE, TEXTS

Stats = dict[str, Any]

FIELDS = ("type", "topic", "view", "difficulty")


def number(value: float) -> str:
    """As the page writes numbers: whole ones with commas, others with three digits.

    >>> number(52002), number(0.12345), number(24.61), number(12.0)
    ('52,002', '0.123', '24.6', '12')
    """
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


Row = tuple[str, Sequence[str]]


def table(head: Sequence[str], rows: Iterable[Row], caption: str = "") -> str:
    """An HTML table; a row without cells is a heading within it."""
    cells = "".join(f"<th scope=col>{escape(text)}</th>" for text in head)
    lines = []
    for label, values in rows:
        if not values:
            lines.append(
                f"<tr class=group><th scope=rowgroup colspan={len(head)}>{escape(label)}</th></tr>"
            )
            continue
        data = "".join(f"<td>{escape(value)}</td>" for value in values)
        lines.append(f"<tr><td>{escape(label)}</td>{data}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<div class=scroll><table>{title}<tr>{cells}</tr>{''.join(lines)}</table></div>"


def summary_rows(stats: Stats) -> list[Row]:
    """Label and one text a set; what the page and the dataset card both show."""
    sets = list(stats["sets"].values())

    def row(label: str, *path: str) -> Row:
        return label, [number(_at(found, path)) for found in sets]

    def part(label: str, total: tuple[str, ...], *path: str) -> Row:
        return label, [
            f"{_at(s, path):,} ({charts.share(_at(s, path), _at(s, total))})" for s in sets
        ]

    records = ("records",)
    asked = ("nearest", "queries")
    rows: list[Row] = [
        row("Records", "records"),
        part("Unique instructions", records, "unique_instructions"),
        part(
            "Repeated but for case, punctuation",
            records,
            "repeated_folded",
        ),
        part("Repeated with the same input", records, "repeated_with_the_same_input"),
        part("With input", records, "words", "input", "count"),
        part("With output", records, "words", "output", "count"),
        ("Words (median)", []),
        *((text.capitalize(), [_median(found["words"][text]) for found in sets]) for text in TEXTS),
        ("Diversity", []),
        part("With root verb and object", records, "verb_objects", "covered"),
        row("Different verb-object pairs", "verb_objects", "distinct"),
        row("Entropy of the pairs (bits)", "verb_objects", "entropy_bits"),
        row("Effective number of pairs", "verb_objects", "effective_number"),
    ]
    for field in FIELDS:
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
