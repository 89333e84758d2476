"""Describes one or several instruction sets: numbers, a page, figures, a dataset card.

    python -m datagen.stats --input=seeds.jsonl,examples.jsonl --names=Seeds,Ours --output=report

Writes stats.json, stats.html, figures/*.png and run.json into --output; with --card also README.md,
a Hugging Face dataset card. Several sets are compared side by side.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from common import cli, jsonl, provenance
from common.jsonl import Record
from common.records import read_records
from common.reports import drawing
from datagen.analysis import card as dataset_card
from datagen.analysis import measures, page, verb_objects


def say(text: str) -> None:
    print(text, file=sys.stderr)


def named_inputs(inputs: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """The files by the name of their set: the given ones, else the files' own.

    Raises:
      ValueError: names and files do not match one to one, or there are too many for one page.
    """
    paths = [Path(text) for text in inputs]
    if len(paths) > drawing.SERIES:
        raise ValueError(f"{len(paths)} sets do not fit on a page; give at most {drawing.SERIES}")
    if names and len(names) != len(paths):
        raise ValueError(f"--names has {len(names)} names for {len(paths)} files of --input")
    given = list(names) or [path.name.split(".")[0] for path in paths]
    for name in given:
        if given.count(name) > 1:
            raise ValueError(f"two sets are called {name!r}; name each with --names=A,B")
    return dict(zip(given, paths, strict=True))


def read_set(path: Path) -> list[Record]:
    """The records of a file, with `output` checked where there is one."""
    records = read_records(path)
    for record in records:
        record["output"] = jsonl.text(f"{path}, record {record['id']}", record, "output")
    return records


def choose_parser(parser: str, model: str) -> tuple[str, measures.Parser]:
    """(name, function) of the verb-object parser.

    Raises:
      ValueError: spaCy was asked for and is not installed.
    """
    pipeline = verb_objects.load_spacy(model) if parser != "rules" else None
    if pipeline is not None:
        return "spacy", partial(verb_objects.by_spacy, pipeline)
    if parser == "spacy":
        raise ValueError(
            f"spaCy or its model {model} is not installed; install both or use --parser=rules"
        )
    return "rules", lambda texts: map(verb_objects.by_rules, texts)


def write_figures(directory: Path, figures: dict[str, page.Figure]) -> dict[str, str]:
    """Writes one PNG a figure; returns the headings by file name. A figure with nothing is none."""
    directory.mkdir(parents=True, exist_ok=True)
    written, missing = {}, set()
    for name, (heading, _, drawings, _) in figures.items():
        path = directory / f"{name}.png"
        if not drawings:
            path.unlink(missing_ok=True)  # of an earlier run
            continue
        whole = drawing.beside(heading, drawings, columns=min(2, len(drawings)))
        missing |= drawing.write_png(path, whole)
        written[f"{directory.name}/{path.name}"] = heading
    if missing:
        say(drawing.boxes(missing))
    return written


def run(
    *,
    inputs: dict[str, Path],
    output: Path,
    parser: str,
    spacy_model: str,
    queries: int,
    seed: int,
    tokenizer: str,
    card: dataset_card.Settings | None,
) -> None:
    """Measures the sets and writes everything; see the flags for the arguments."""
    sets = {name: read_set(path) for name, path in inputs.items()}
    parser, parse = choose_parser(parser, spacy_model)
    settings: dict[str, Any] = {
        "inputs": {
            name: {"file": path.name, "sha256": provenance.sha256(path)}
            for name, path in inputs.items()
        },
        "parser": parser,
        "spacy_model": spacy_model if parser == "spacy" else None,
        "neighbour_queries": queries,
        "seed": seed,
        "tokenizer": tokenizer,
    }
    record = provenance.describe(config=settings)
    stats = measures.measure(
        sets, parse, parser=parser, queries=queries, seed=seed, tokenizer=tokenizer, say=say
    )
    output.mkdir(parents=True, exist_ok=True)
    provenance.write_json(output / "stats.json", stats)
    provenance.write_text(output / "stats.html", page.page(stats))
    figures = write_figures(output / "figures", page.figures(stats))
    if card:
        text = dataset_card.card(card, stats, inputs, sets, figures)
        provenance.write_text(output / "README.md", text)
        say(f"{output / 'README.md'}: upload it beside the data files that it names")
    provenance.write_json(output / "run.json", record | {"end": provenance.now()})
    say(f"{output / 'stats.html'}: {sum(map(len, sets.values())):,} records, {len(sets)} set(s)")


def define_flags() -> None:
    flags.DEFINE_list("input", None, "Records: .jsonl or .json, .gz or not; several by commas.")
    flags.DEFINE_string("output", None, "Folder for the results.")
    flags.DEFINE_list("names", [], "Name of each set; the files' names by default.")
    flags.DEFINE_enum(
        "parser", "auto", ["auto", "spacy", "rules"], "Finds verbs; auto: spaCy where installed."
    )
    flags.DEFINE_string("spacy_model", "en_core_web_md", "The spaCy model.")
    flags.DEFINE_integer(
        "neighbour_queries",
        5000,
        "Instructions of a set that look for their nearest neighbour among all; 0: every one.",
        lower_bound=0,
    )
    flags.DEFINE_integer("seed", 0, "Of the drawing of instructions.")
    flags.DEFINE_enum(
        "tokenizer", "rouge", list(measures.TOKENIZERS), "rouge: a-z, 0-9; unicode: any script."
    )
    flags.DEFINE_bool("card", False, "Write README.md, a Hugging Face dataset card; needs:")
    flags.DEFINE_string("license", None, "Licence of the data: a Hugging Face identifier.")
    flags.DEFINE_list("language", [], "Language codes of the data, as en or en,de.")
    flags.DEFINE_string("title", None, "Name of the data set on its card.")
    flags.DEFINE_list("tags", [], "More tags for the card.")
    flags.mark_flags_as_required(["input", "output"])
    cli.require_entries("input")


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    inputs = named_inputs(FLAGS.input, FLAGS.names)
    card = None
    if FLAGS.card:
        card = dataset_card.Settings(
            FLAGS.license or "", tuple(FLAGS.language), FLAGS.title or "", tuple(FLAGS.tags)
        )
    run(
        inputs=inputs,
        output=Path(FLAGS.output),
        parser=FLAGS.parser,
        spacy_model=FLAGS.spacy_model,
        queries=FLAGS.neighbour_queries,
        seed=FLAGS.seed,
        tokenizer=FLAGS.tokenizer,
        card=card,
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
