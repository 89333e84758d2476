"""`stats.html`: one self-contained page with every figure and number of `stats.json`."""

from html import escape
from typing import Any

from common import sections
from common.reports import charts
from common.reports.drawing import Drawing
from common.reports.page import TableRow, document, foldout, number, panels, table
from common.reports.sunburst import sunburst
from datagen.analysis.labels import LABEL_FIELDS
from datagen.analysis.measures import (
    NEAR_DUPLICATE,
    SUNBURST_OBJECTS,
    SUNBURST_VERBS,
    TEXT_FIELDS,
)

Stats = dict[str, Any]

CHART_FIELDS = (*LABEL_FIELDS, "difficulty")
SHOWN_LABELS = 12  # per field; the others share one bar
PARSER_NOTES = {
    "rules": "rules for imperative sentences (datagen/analysis/verb_objects.py)",
    "spacy": "spaCy: root verb and its direct object in the first sentence",
}
TOKENIZER_NOTES = {
    "rouge": "rouge_score's tokens (a to z and digits)",
    "unicode": "words of any script",
}

STATS_STYLE = "@media print{#nearest,#lengths,section:last-child{break-inside:avoid}}"


def page(stats: Stats) -> str:
    """The whole HTML page."""
    names = ", ".join(stats["sets"])
    summary = table(["", *stats["sets"]], summary_rows(stats))
    sections = [
        f"<section id={name}><h2>{escape(heading)}</h2><p>{escape(text)}</p>"
        f"{panels(drawings)}{numbers}</section>"
        for name, (heading, text, drawings, numbers) in figures(stats).items()
    ]
    body = (
        f"<h1>Instruction set statistics</h1><p class=muted>{escape(names)}</p>\n"
        f"<section id=summary><h2>Summary</h2>{summary}</section>\n"
        + "\n".join(sections)
        + f"\n{_notes()}"
    )
    return document(f"Statistics of {names}", body, style=STATS_STYLE)


def summary_rows(stats: Stats) -> list[TableRow]:
    """Rows of a label and one text per set; the page and the dataset card show the same."""
    sets = [sections.flatten(found) for found in stats["sets"].values()]

    def row(label: str, name: str, counted: str = "", otherwise: str = "") -> TableRow:
        """A measure by its dotted name; `otherwise` where nothing was counted."""
        shown = [number(found[name]) if found.get(counted, 1) else otherwise for found in sets]
        return label, shown

    def part(label: str, name: str, total: str = "records") -> TableRow:
        return label, [f"{s[name]:,} ({charts.percentage(s[name], s[total])})" for s in sets]

    def label_row(field: str) -> TableRow:
        name, counted = f"labels.{field}.effective_number", f"labels.{field}.distinct"
        return row(f"Effective number: {field}", name, counted, "no labels")

    def length_row(field: str) -> TableRow:
        words = f"words.{field}"
        return row(field.capitalize(), f"{words}.median", f"{words}.count", "none")

    equal = "vocabulary_of_equal_size"
    return [
        row("Records", "records"),
        part("Unique instructions", "unique_instructions"),
        part("Repeated up to case, punctuation", "repeated_folded"),
        part("Repeated with the same input", "repeated_with_the_same_input"),
        part("With input", "words.input.count"),
        part("With output", "words.output.count"),
        ("Words (median)", []),
        *map(length_row, TEXT_FIELDS),
        ("Diversity", []),
        part("With root verb and object", "verb_objects.covered"),
        row("Distinct verb-object pairs", "verb_objects.distinct"),
        row("Entropy of the pairs (bits)", "verb_objects.entropy_bits"),
        row("Effective number of pairs", "verb_objects.effective_number"),
        *map(label_row, CHART_FIELDS),
        (f"In {number(sets[0][f'{equal}.tokens'])} words of each set", []),
        row("Type-token ratio", f"{equal}.type_token_ratio"),
        *(row(f"Distinct-{n}", f"{equal}.distinct_{n}") for n in (2, 3)),
        ("ROUGE-L to the nearest other instruction", []),
        row("Compared instructions", "nearest.queries"),
        row("Median", "nearest.median"),
        part(f"Over {NEAR_DUPLICATE}", "nearest.over_near_duplicate", "nearest.queries"),
    ]


StatsFigure = tuple[str, str, list[Drawing], str]  # heading, text, drawings, HTML of the numbers


def figures(stats: Stats) -> dict[str, StatsFigure]:
    """The figures by name; the page and the PNGs show the same ones."""
    return {
        "verb_objects": _verb_objects(stats),
        "labels": _labels(stats),
        "lengths": _lengths(stats),
        "nearest": _nearest(stats),
    }


def _verb_objects(stats: Stats) -> StatsFigure:
    drawings, tables, empty = [], [], []
    for name, found in stats["sets"].items():
        pairs, covered = found["verb_objects"], found["verb_objects"]["covered"]
        if not covered:
            empty.append(name)
            continue
        share = charts.percentage(covered, found["records"])
        title = f"{name}: {covered:,} of {found['records']:,} instructions ({share})"
        drawings.append(sunburst(title, pairs["top"], covered))
        rows: list[TableRow] = []
        for verb in pairs["top"]:
            objects = ", ".join(f"{noun} {count:,}" for noun, count in verb["objects"].items())
            rows.append((verb["verb"], [f"{verb['count']:,}", objects]))
        tables.append(table(["Verb", "Count", "Objects"], rows, name))
    text = (
        f"The {SUNBURST_VERBS} most frequent root verbs (inner ring) and the {SUNBURST_OBJECTS} "
        "most frequent objects of each (outer ring). The centre shows how many of all pairs these "
        "are, the title how many instructions have a pair; questions and statements have none. "
        f"Found with {PARSER_NOTES[stats['settings']['verb_object_parser']]}."
    )
    if empty:
        text += f" No pair in: {', '.join(empty)}."
    return "Root verbs and their objects", text, drawings, foldout("".join(tables))


def label_rows(stats: Stats, field: str) -> list[tuple[str, list[int]]]:
    """(label, count in each set), most frequent first; the tail is one row, "other (n)"."""
    sets = [found["labels"][field] for found in stats["sets"].values()]
    counts: dict[str, list[int]] = {}
    for i, labels in enumerate(sets):
        for value in labels["values"]:
            counts.setdefault(value["name"], [0] * len(sets))[i] = value["count"]
    rows = list(counts.items())
    if field == "difficulty":
        return rows
    totals = [sum(column) or 1 for column in zip(*counts.values(), strict=True)]

    def rank(row: tuple[str, list[int]]) -> tuple[float, str]:
        label, column = row
        return -sum(n / t for n, t in zip(column, totals, strict=True)), label

    rows.sort(key=rank)
    head, tail = rows[:SHOWN_LABELS], rows[SHOWN_LABELS:]
    if len(tail) > 1:
        others = [sum(column) for column in zip(*(row[1] for row in tail), strict=True)]
        return [*head, (f"{charts.OTHER}{len(tail):,})", others)]
    return rows


def _labels(stats: Stats) -> StatsFigure:
    sets, drawings, tables, unlabelled = stats["sets"], [], [], []
    for field in CHART_FIELDS:
        missing = [f"{n} {s['labels'][field]['missing']:,}" for n, s in sets.items()]
        if any(s["labels"][field]["missing"] for s in sets.values()):
            unlabelled.append(f"without {field}: {', '.join(missing)}")
        rows = label_rows(stats, field)
        totals = [s["records"] - s["labels"][field]["missing"] for s in sets.values()]
        if not any(totals):
            continue
        drawings.append(charts.count_bars(field.capitalize(), rows, list(sets), totals))
        tables.append(table([field, *sets], [(name, list(map(number, row))) for name, row in rows]))
    spelled = [
        (value["name"], [name, "; ".join(f"{s} {n:,}" for s, n in value["spellings"].items())])
        for name, found in sets.items()
        for field in LABEL_FIELDS
        for value in found["labels"][field]["values"]
        if len(value["spellings"]) > 1
    ]
    details = foldout("".join(tables))
    if spelled:
        spellings = table(["Label", "Set", "Spelled"], spelled)
        details += foldout(spellings, "Spellings counted as one label")
    text = "Shares are of the records that have the label; spelling variants are counted as one."
    if unlabelled:
        text += " Records " + "; ".join(unlabelled) + "."
    return "Type, topic, view and difficulty", text, drawings, details


def _lengths(stats: Stats) -> StatsFigure:
    names, drawings = list(stats["sets"]), []
    rows: list[TableRow] = []
    for text, edges in stats["word_edges"].items():
        found = [s["words"][text] for s in stats["sets"].values()]
        if not any(item["count"] for item in found):
            continue
        title, counts = text.capitalize(), [item["histogram"] for item in found]
        chart = charts.histogram(title, edges, counts, names, unit="words", open_end=True)
        drawings.append(chart)
        rows.append((title, []))
        for name, item in zip(names, found, strict=True):
            cells = [number(item[key]) for key in ("count", "mean", "median", "p95", "max")]
            rows.append((name, cells))
    details = table(["Words", "Texts", "Mean", "Median", "95th percentile", "Longest"], rows)
    text = "Empty texts are left out. The last bin holds everything longer."
    return "Lengths", text, drawings, foldout(details)


def _nearest(stats: Stats) -> StatsFigure:
    sets, settings = stats["sets"], stats["settings"]
    counts = [found["nearest"]["histogram"] for found in sets.values()]
    chart = charts.histogram(
        "ROUGE-L F to the nearest other instruction",
        stats["nearest_edges"],
        counts,
        list(sets),
        unit="ROUGE-L F",
        open_end=False,
        mark=(NEAR_DUPLICATE, f"F = {NEAR_DUPLICATE}"),
    )
    compared = []
    for name, found in sets.items():
        near = found["nearest"]
        usable = found["records"] - near["without_tokens"]
        sampled = f", drawn with seed {settings['seed']}" if near["queries"] < usable else ""
        compared.append(f"{name}: {near['queries']:,} against {usable:,}{sampled}")
        if near["without_tokens"]:
            compared[-1] += f" ({near['without_tokens']:,} without tokens left out)"
    keys = ("mean", "median", "p95", "over_near_duplicate", "identical")
    head = ["Set", "Mean", "Median", "95th percentile", f"Over {NEAR_DUPLICATE}", "Identical"]
    rows = [(name, [number(s["nearest"][key]) for key in keys]) for name, s in sets.items()]
    text = (
        "ROUGE-L F of each instruction and the most similar other one of its set; inputs are not "
        f"compared. Exact, on {TOKENIZER_NOTES[settings['nearest_tokenizer']]}. "
        f"{'; '.join(compared)}. {NEAR_DUPLICATE} is the default threshold of datagen.tasks and "
        "datagen.dedup; it says nothing about how these sets were filtered. "
        "A larger set has nearer neighbours, all else being equal."
    )
    return "Nearest neighbours", text, [chart], foldout(table(head, rows))


def _notes() -> str:
    notes = (
        "Words are separated by spaces; in scripts without spaces, each character is a word.",
        "Entropy is Shannon's, in bits. Effective number is 2^entropy: as many equally frequent "
        "kinds would be equally diverse.",
        "Distinct-n is the number of distinct n-grams over all n-grams of the instructions, in "
        "lower-case words of any script without punctuation. It falls as a set grows, so all sets "
        "are compared at the size of the smallest; stats.json also holds the values of whole sets.",
        "Labels that differ only in case, hyphens, plural or British spelling count as one "
        "(datagen/analysis/labels.py).",
    )
    return "<section><h2>Notes</h2>" + "".join(f"<p>{escape(n)}</p>" for n in notes) + "</section>"
