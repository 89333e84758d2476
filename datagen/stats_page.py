"""`stats.html`: one page with every figure and number of `stats.json`, and nothing to fetch."""

from collections.abc import Sequence
from html import escape

from datagen import charts, drawing
from datagen.drawing import Drawing
from datagen.set_stats import NEAR_DUPLICATE, OBJECTS, VERBS
from datagen.stats_tables import FIELDS, Row, Stats, number, summary_rows, table

SHOWN_LABELS = 12  # of each field; the others are one bar
PARSERS = {
    "rules": "rules for imperative sentences (datagen/verb_objects.py)",
    "spacy": "spaCy: root verb and its direct object in the first sentence",
}

TOKENS = {"rouge": "rouge_score's tokens (a-z and 0-9)", "unicode": "words of any script"}

STYLE = """
:root{color-scheme:light dark;LIGHT}
@media (prefers-color-scheme:dark){:root{DARK}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:24px 15px 60px;background:var(--paper);
color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"Noto Sans",sans-serif}
h1{font-size:26px;line-height:1.2;margin:0 0 4px}h2{font-size:19px;margin:40px 0 4px}
h3{font-size:14px;margin:0 0 6px;overflow-wrap:anywhere}
p{margin:4px 0 12px;max-width:75ch}.muted,caption,summary{color:var(--muted)}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr));
gap:28px 32px;align-items:start;margin:14px 0}
figure{margin:0;max-width:430px;break-inside:avoid}
figcaption{color:var(--muted);font-size:13px}
svg{display:block;width:100%;height:auto;font-family:inherit}
svg .gap{stroke:var(--paper);stroke-width:.8}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:14px;margin:8px 0}
th,td{padding:4px 14px 4px 0;text-align:right;border-bottom:1px solid var(--grid);
font-variant-numeric:tabular-nums;vertical-align:top}
th:first-child,td:first-child{text-align:left;overflow-wrap:anywhere}
th{font-weight:600}tr.group th{padding-top:14px;border-bottom-color:var(--muted)}
caption{text-align:left}details{margin:6px 0}summary{cursor:pointer}
@media print{:root{LIGHT}body{font-size:10.5pt;max-width:none;padding:0}details{display:none}
.panels{grid-template-columns:repeat(2,1fr);gap:14px 22px}h2,p{break-after:avoid;break-inside:avoid}
#nearest,#lengths{break-inside:avoid}
h2{margin-top:22px}
th,td{padding-block:1.5px}section:last-child{break-inside:avoid}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def page(stats: Stats) -> str:
    """The whole page."""
    light, dark = drawing.colour_rules(False), drawing.colour_rules(True)
    style = STYLE.replace("LIGHT", light).replace("DARK", dark)
    names = ", ".join(stats["sets"])
    sections = [
        _section(name, heading, text, drawings, details)
        for name, (heading, text, drawings, details) in figures(stats).items()
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Statistics of {escape(names)}</title><style>{style}</style></head>\n<body>"
        f"<h1>Instruction set statistics</h1><p class=muted>{escape(names)}</p>\n"
        f"<section id=summary><h2>Summary</h2>{_summary(stats)}</section>\n"
        + "\n".join(sections)
        + f"\n{_notes(stats)}</body></html>\n"
    )


Figure = tuple[str, str, list[Drawing], str]  # heading, text, drawings, HTML of the numbers


def figures(stats: Stats) -> dict[str, Figure]:
    """The figures by name: those of the page, and one PNG each."""
    return {
        "verb_objects": _verb_objects(stats),
        "labels": _labels(stats),
        "lengths": _lengths(stats),
        "nearest": _nearest(stats),
    }


def _section(name: str, heading: str, text: str, drawings: Sequence[Drawing], details: str) -> str:
    panels = "".join(
        f"<figure><h3>{escape(item.title)}</h3>{drawing.svg(item)}</figure>" for item in drawings
    )
    return (
        f"<section id={name}><h2>{escape(heading)}</h2><p>{escape(text)}</p>"
        f"<div class=panels>{panels}</div>{details}</section>"
    )


def _summary(stats: Stats) -> str:
    return table(["", *stats["sets"]], summary_rows(stats))


def _numbers(content: str, label: str = "The numbers") -> str:
    return f"<details><summary>{label}</summary>{content}</details>"


def _verb_objects(stats: Stats) -> Figure:
    drawings, tables, empty = [], [], []
    for name, found in stats["sets"].items():
        pairs = found["verb_objects"]
        share = charts.share(pairs["covered"], found["records"])
        title = f"{name}: {pairs['covered']:,} of {found['records']:,} instructions ({share})"
        if not pairs["covered"]:
            empty.append(name)
            continue
        drawings.append(charts.sunburst(title, pairs["top"], pairs["covered"]))
        rows: list[Row] = [
            (
                verb["verb"],
                [f"{verb['count']:,}", ", ".join(f"{n} {c:,}" for n, c in verb["objects"].items())],
            )
            for verb in pairs["top"]
        ]
        tables.append(table(["Verb", "Count", "Objects"], rows, name))
    text = (
        f"The {VERBS} most frequent root verbs (inner ring) and their {OBJECTS} most frequent "
        "objects each (outer ring); the centre tells how many of all pairs these are, the title "
        "how many instructions have a pair: questions and statements have none. Found with "
        f"{PARSERS[stats['settings']['verb_object_parser']]}."
    )
    if empty:
        text += f" No pair in: {', '.join(empty)}."
    return "Root verbs and their objects", text, drawings, _numbers("".join(tables))


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
    weight = lambda row: sum(n / t for n, t in zip(row[1], totals, strict=True))  # noqa: E731
    rows.sort(key=lambda row: (-weight(row), row[0]))
    head, tail = rows[:SHOWN_LABELS], rows[SHOWN_LABELS:]
    if len(tail) > 1:
        others = [sum(column) for column in zip(*(row[1] for row in tail), strict=True)]
        return [*head, (f"{charts.OTHER}{len(tail):,})", others)]
    return rows


def _labels(stats: Stats) -> Figure:
    sets, drawings, tables, said = stats["sets"], [], [], []
    for field in FIELDS:
        missing = [f"{n} {s['labels'][field]['missing']:,}" for n, s in sets.items()]
        if any(s["labels"][field]["missing"] for s in sets.values()):
            said.append(f"without {field}: {', '.join(missing)}")
        rows = label_rows(stats, field)
        totals = [s["records"] - s["labels"][field]["missing"] for s in sets.values()]
        if not any(totals):
            continue
        drawings.append(charts.bars(field.capitalize(), rows, list(sets), totals))
        tables.append(table([field, *sets], [(name, list(map(number, row))) for name, row in rows]))
    spelled = [
        (value["name"], [name, "; ".join(f"{s} {n:,}" for s, n in value["spellings"].items())])
        for name, found in sets.items()
        for field in ("type", "topic", "view")
        for value in found["labels"][field]["values"]
        if len(value["spellings"]) > 1
    ]
    details = _numbers("".join(tables))
    if spelled:
        spellings = table(["Label", "Set", "Spelled"], spelled)
        details += _numbers(spellings, "Spellings counted as one label")
    text = "Shares are of the records that have the label; spelling variants are counted as one."
    if said:
        text += " Records " + "; ".join(said) + "."
    return "Type, topic, view and difficulty", text, drawings, details


def _lengths(stats: Stats) -> Figure:
    names, drawings = list(stats["sets"]), []
    rows: list[Row] = []
    for text, edges in stats["word_edges"].items():
        found = [s["words"][text] for s in stats["sets"].values()]
        if not any(item["count"] for item in found):
            continue
        drawings.append(
            charts.histogram(
                text.capitalize(),
                edges,
                [item["histogram"] for item in found],
                names,
                unit="words",
                open_end=True,
            )
        )
        rows.append((text.capitalize(), []))
        for name, item in zip(names, found, strict=True):
            cells = [number(item[key]) for key in ("count", "mean", "median", "p95", "max")]
            rows.append((name, cells))
    details = table(["Words", "Texts", "Mean", "Median", "95th percentile", "Longest"], rows)
    text = "Of the texts that are not empty. The last bin holds everything longer."
    return "Lengths", text, drawings, _numbers(details)


def _nearest(stats: Stats) -> Figure:
    sets, settings = stats["sets"], stats["settings"]
    counts = [found["nearest"]["histogram"] for found in sets.values()]
    chart = charts.histogram(
        "ROUGE-L F to the nearest other instruction",
        stats["nearest_edges"],
        counts,
        list(sets),
        unit="ROUGE-L F",
        open_end=False,
        mark=(NEAR_DUPLICATE, f"filter: {NEAR_DUPLICATE}"),
    )
    asked = []
    for name, found in sets.items():
        near = found["nearest"]
        usable = found["records"] - near["without_tokens"]
        sampled = f", drawn with seed {settings['seed']}" if near["queries"] < usable else ""
        asked.append(f"{name}: {near['queries']:,} against {usable:,}{sampled}")
        if near["without_tokens"]:
            asked[-1] += f" ({near['without_tokens']:,} without a token left out)"
    keys = ("mean", "median", "p95", "over_near_duplicate", "identical")
    head = ["Set", "Mean", "Median", "95th percentile", f"Over {NEAR_DUPLICATE}", "Identical"]
    rows = [(name, [number(s["nearest"][key]) for key in keys]) for name, s in sets.items()]
    text = (
        "How similar each instruction is to the most similar other one of its set; inputs are not "
        f"compared. Exact, on {TOKENS[settings['nearest_tokenizer']]}. {'; '.join(asked)}. "
        "A larger set has nearer neighbours, everything else equal."
    )
    return "Nearest neighbours", text, [chart], _numbers(table(head, rows))


def _notes(stats: Stats) -> str:
    del stats
    notes = (
        "A word is what stands between spaces; in scripts without spaces, a character.",
        "Entropy is Shannon's, in bits. Effective number is 2^entropy: as many equally frequent "
        "kinds would be as diverse.",
        "Distinct-n is the number of different n-grams over all n-grams of the instructions "
        "(lower case, without punctuation). It falls as a set grows, so all sets are compared at "
        "the size of the smallest; stats.json holds the whole sets' values too.",
        "Labels that differ in case, hyphens, plural or British spelling only are one label "
        "(datagen/label_names.py).",
    )
    return "<section><h2>Notes</h2>" + "".join(f"<p>{escape(n)}</p>" for n in notes) + "</section>"
