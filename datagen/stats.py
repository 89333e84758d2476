"""Describes instruction sets: numbers, a page, figures, a dataset card.

    python -m datagen.stats --input=examples.jsonl,seeds.jsonl --names=Ours,Seeds --output=report

Writes stats.json, stats.html, figures/*.png and run.json into --output; with --card --license=...
also README.md, a Hugging Face dataset card of the first set, and croissant.json, the same for
machines. The other sets are comparisons.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from common import cli, jsonl, provenance
from common.jsonl import Record
from common.messages import log
from common.records import read_records
from common.reports import drawing
from common.sections import UsageError
from common.text.rouge import TOKENIZERS
from datagen.analysis import croissant, measures, page, verb_objects
from datagen.analysis.card import CardSettings, card

MEDICAL_NOTICE = Path(__file__).with_name("prompts") / "notice.txt"


def named_inputs(inputs: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """The files by set name, which is taken from --names or from the file name.

    Raises:
      UsageError: names and files do not match one to one, or there are too many sets for a page.
    """
    paths = [Path(text) for text in inputs]
    if len(paths) > drawing.SERIES:
        raise UsageError(f"{len(paths)} sets do not fit on a page; give at most {drawing.SERIES}")
    if names and len(names) != len(paths):
        raise UsageError(f"--names has {len(names)} names for {len(paths)} files of --input")
    given = list(names) or [path.name.split(".")[0] for path in paths]
    for name in given:
        if given.count(name) > 1:
            raise UsageError(f"duplicate set name {name!r}; set unique names with --names=A,B")
    return dict(zip(given, paths, strict=True))


def read_set(path: Path) -> list[Record]:
    """The records of a file, with `output` checked if present."""
    records = read_records(path)
    for record in records:
        record["output"] = jsonl.text(f"{path}, record {record['id']}", record, "output")
    return records


def write_figures(directory: Path, figures: dict[str, page.StatsFigure]) -> dict[str, str]:
    """Writes one PNG per figure that has drawings; returns the headings by relative path."""
    directory.mkdir(parents=True, exist_ok=True)
    written, missing = {}, set()
    for name, (heading, _, drawings, _) in figures.items():
        path = directory / f"{name}.png"
        if not drawings:
            path.unlink(missing_ok=True)  # left by an earlier run
            continue
        whole = drawing.beside(heading, drawings, columns=min(2, len(drawings)))
        missing |= drawing.write_png(path, whole)
        written[f"{directory.name}/{path.name}"] = heading
    if missing:
        log(drawing.missing_glyphs(missing))
    return written


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_list(
        "input", None, "Sets of records, comma-separated: .jsonl or .json, optionally .gz."
    )
    flags.DEFINE_string("output", None, "Folder for the results.")
    flags.DEFINE_list("names", [], "Name of each set; by default its file name.")
    flags.DEFINE_enum(
        "parser",
        "auto",
        ["auto", "spacy", "rules"],
        "How verbs and objects are found; auto: spaCy if installed.",
    )
    flags.DEFINE_string("spacy_model", "en_core_web_md", "The spaCy model.")
    flags.DEFINE_integer(
        "neighbour_queries",
        5000,
        "Instructions of each set whose nearest neighbour is searched for; 0: all.",
        lower_bound=0,
    )
    flags.DEFINE_integer("seed", 0, "Seed of the random samples.", lower_bound=0)
    flags.DEFINE_enum(
        "tokenizer",
        "rouge",
        list(TOKENIZERS),
        "Tokens of the nearest-neighbour search; rouge: a to z and digits; unicode: any script.",
    )
    flags.DEFINE_bool(
        "card",
        False,
        "Also write README.md, a Hugging Face dataset card of the first set, and croissant.json; "
        "requires --license.",
    )
    flags.DEFINE_string("license", "", "Licence of the first set: a Hugging Face identifier.")
    flags.DEFINE_list("language", [], "Language codes for the card, such as en or en,de.")
    flags.DEFINE_string("title", "", "Title of the card; by default the name of the first set.")
    flags.DEFINE_list("tags", [], "Additional tags for the card.")
    flags.DEFINE_string(
        "notice", "", "File with the warning on the card; by default that of medicine."
    )
    flags.mark_flags_as_required(["input", "output"])
    cli.require_entries("input")


def main(argv: Sequence[str]) -> None:
    """Measures the sets and writes all outputs."""
    del argv
    FLAGS = flags.FLAGS
    inputs, output = named_inputs(FLAGS.input, FLAGS.names), Path(FLAGS.output)
    first = next(iter(inputs))
    card_settings = None
    if FLAGS.card:
        card_settings = CardSettings(
            license=FLAGS.license,
            language=tuple(FLAGS.language),
            title=FLAGS.title or first,
            tags=tuple(FLAGS.tags),
            notice=(Path(FLAGS.notice) if FLAGS.notice else MEDICAL_NOTICE).read_text("utf-8"),
        )
    sets = {name: read_set(path) for name, path in inputs.items()}
    parser, find_pairs = verb_objects.choose_parser(FLAGS.parser, FLAGS.spacy_model)
    settings: dict[str, Any] = {
        "inputs": {
            name: {"file": path.name, "sha256": provenance.sha256(path)}
            for name, path in inputs.items()
        },
        "parser": parser,
        "spacy_model": FLAGS.spacy_model if parser == "spacy" else None,
        "neighbour_queries": FLAGS.neighbour_queries,
        "seed": FLAGS.seed,
        "tokenizer": FLAGS.tokenizer,
    }
    record = provenance.describe(config=settings)
    stats = measures.measure(
        sets,
        find_pairs,
        parser=parser,
        queries=FLAGS.neighbour_queries,
        seed=FLAGS.seed,
        tokenizer=FLAGS.tokenizer,
    )
    output.mkdir(parents=True, exist_ok=True)
    provenance.write_json(output / "stats.json", stats)
    provenance.write_text(output / "stats.html", page.page(stats))
    figures = write_figures(output / "figures", page.figures(stats))
    if card_settings:
        path = inputs[first]
        text = card(card_settings, stats, path, sets[first], figures)
        provenance.write_text(output / "README.md", text)
        machine = croissant.croissant(card_settings, path, sets[first])
        provenance.write_json(output / "croissant.json", machine)
        log(
            f"{output / 'README.md'}: dataset card of {path.name}; upload both together, with "
            f"croissant.json, whose {', '.join(croissant.AUTHORS_FIELDS)} are yours to write"
        )
    ended = {"sha256": provenance.sha256(output / "stats.html"), "end": provenance.now()}
    provenance.write_json(output / "run.json", record | ended)
    log(f"{output / 'stats.html'}: {sum(map(len, sets.values())):,} records, {len(sets)} set(s)")


if __name__ == "__main__":
    define_flags()
    cli.run(main, output="output")
