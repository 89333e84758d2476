"""The numbers of `stats.json` as rows of text, for the page and the dataset card."""

from typing import Any

from common import sections
from common.reports.charts import percentage
from common.reports.page import TableRow, number
from datagen.analysis.labels import LABEL_FIELDS
from datagen.analysis.measures import NEAR_DUPLICATE, TEXT_FIELDS

Stats = dict[str, Any]

CHART_FIELDS = (*LABEL_FIELDS, "difficulty")


def summary_rows(stats: Stats) -> list[TableRow]:
    """Rows of a label and one text per set; the page and the dataset card show the same."""
    sets = [sections.flatten(found) for found in stats["sets"].values()]

    def row(label: str, name: str, *, counted: str = "", otherwise: str = "") -> TableRow:
        """A measure by its dotted name; `otherwise` where nothing was counted."""
        shown = [number(found[name]) if found.get(counted, 1) else otherwise for found in sets]
        return label, shown

    def part(label: str, name: str, total: str = "records") -> TableRow:
        return label, [f"{s[name]:,} ({percentage(s[name], s[total])})" for s in sets]

    size = number(sets[0]["vocabulary_of_equal_size.tokens"])
    return [
        row("Records", "records"),
        part("Unique instructions", "unique_instructions"),
        part("Repeated up to case, punctuation", "repeated_folded"),
        part("Repeated with the same input", "repeated_with_the_same_input"),
        part("With input", "words.input.count"),
        part("With output", "words.output.count"),
        ("Words (median)", []),
        *(
            row(
                field.capitalize(),
                f"words.{field}.median",
                counted=f"words.{field}.count",
                otherwise="none",
            )
            for field in TEXT_FIELDS
        ),
        ("Diversity", []),
        part("With root verb and object", "verb_objects.covered"),
        row("Distinct verb-object pairs", "verb_objects.distinct"),
        row("Entropy of the pairs (bits)", "verb_objects.entropy_bits"),
        row("Effective number of pairs", "verb_objects.effective_number"),
        *(
            row(
                f"Effective number: {field}",
                f"labels.{field}.effective_number",
                counted=f"labels.{field}.distinct",
                otherwise="no labels",
            )
            for field in CHART_FIELDS
        ),
        (f"In {size} words of each set", []),
        row("Type-token ratio", "vocabulary_of_equal_size.type_token_ratio"),
        *(row(f"Distinct-{n}", f"vocabulary_of_equal_size.distinct_{n}") for n in (2, 3)),
        ("ROUGE-L to the nearest other instruction", []),
        row("Compared instructions", "nearest.queries"),
        row("Median", "nearest.median"),
        part(f"Over {NEAR_DUPLICATE}", "nearest.over_near_duplicate", "nearest.queries"),
    ]
