"""Makes a page on which people compare answers blindly.

    python -m evaluation.annotate --judgements=D,... --annotators=lee,patel --items=60 --output=DIR
    python -m evaluation.annotate --benchmark=medinstruct --outputs=ours=F,... --references=gpt-4 \\
        --annotators=lee,patel --overlap=2 --items=60 --output=DIR [--data=data]
    python -m evaluation.annotate --judgements=D,... --labels=DIR --width=10 --output=DIR2

Writes annotate.html, one self-contained file to send to the annotators, key.json, which names the
systems and stays here, and run.json. Annotators send back JSON files; put them beside key.json, and
give the folder to evaluation.report --labels.

Items are drawn at random; those that --labels cover are not drawn again. --width is that of the
interval of a corrected win rate, in percentage points: the plan says how many items it needs, given
what --labels say of the judge, and draws those that are missing.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from common import cli, provenance
from common.messages import log
from common.sections import UsageError
from evaluation.annotation import exports, page
from evaluation.annotation.candidates import (
    Candidates,
    draw,
    from_files,
    from_judgements,
    warn_of_names,
)
from evaluation.annotation.pairs import KEY_FILE, AnswerPair, PageKey, assign, read_key
from evaluation.annotation.planning import LabelNeed, needs
from evaluation.inputs.benchmarks import check_name
from evaluation.judgements import foreign, reading, workdirs
from evaluation.judgements.verdicts import Matchup, Verdicts
from evaluation.scoring import score
from evaluation.scoring.measurement import score_sheets
from evaluation.scoring.people import PREFERENCE, measure_people

PAGE_FILE = "annotate.html"

MAX_LISTED = 10
"""Of the rates that need labels."""


def planned(
    width: float, verdicts: Verdicts, people: Verdicts | None, candidates: Candidates
) -> list[LabelNeed]:
    """What the rates of the candidates need; logs the neediest."""
    sheets = score_sheets(verdicts)
    wanted = {
        (pair.item.benchmark, pair.reference.generator, pair.model.generator)
        for items in candidates.pairs.values()
        for pair in next(iter(items.values()))
    }
    rates = {
        Matchup(*key, generator): score.win_rate(parts[0])
        for key, sheet in sheets.items()
        for generator, parts in sheet.items()
        if (*key[1:], generator) in wanted
    }
    asked = {PREFERENCE: people} if people else {}
    found = needs(width, rates, measure_people(asked, sheets, seed=0))
    for need in found[:MAX_LISTED]:
        log(str(need))
    if others := found[MAX_LISTED:]:
        more = sum(need.missing > 0 for need in others)
        log(f"not listed: {len(others):,}, of which {more:,} need more items")
    return found


def write(
    output: Path, key: PageKey, pairs: Sequence[AnswerPair], settings: dict[str, Any]
) -> None:
    """Writes the folder; a key that is there must be the same."""
    record = provenance.describe(config=settings)
    if (output / KEY_FILE).exists() and read_key(output / KEY_FILE) != key:
        raise UsageError(
            f"{output} holds the page of other pairs or annotators, whose answers need its "
            f"{KEY_FILE}; choose another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    provenance.write_json(output / KEY_FILE, key.record())
    html = page.build(key, pairs)
    provenance.write_text(output / PAGE_FILE, html)
    provenance.write_json(output / "run.json", record | {"end": provenance.now()})
    each = ", ".join(
        f"{name} {sum(a.annotator == name for a in key.assignments.values()):,}"
        for name in key.annotators
    )
    log(f"{output / PAGE_FILE}: {len(pairs):,} pairs; {each}; keep {KEY_FILE} to yourself")


def run(
    candidates: Candidates,
    *,
    annotators: Sequence[str],
    overlap: int,
    labelled: set[tuple[str, str]],
    counts: Mapping[str, int],
    seed: int | None,
    output: Path,
    settings: dict[str, Any],
) -> None:
    """Draws items and writes the folder; run again, it writes the same files.

    Args:
      labelled: (benchmark, id) of the items that are not to be drawn.
      counts: items to draw, by benchmark.
      seed: None: that of the key in `output`, or a secret one.
    """
    if seed is None:
        exists = (output / KEY_FILE).exists()
        seed = read_key(output / KEY_FILE).seed if exists else secrets.randbits(63)
    pairs = draw(candidates, labelled, counts, seed)
    if not pairs:
        raise UsageError(
            "nothing is left to annotate: --labels cover all, or --width needs no more"
        )
    warn_of_names(pairs)
    write(output, assign(pairs, annotators, overlap, seed), pairs, settings)


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_list("judgements", [], "Workdirs of evaluation.judge whose pairs are annotated.")
    flags.DEFINE_list("labels", [], "Earlier labels: folders or files, as of evaluation.report.")
    flags.DEFINE_string("benchmark", "", "Without --judgements: test set, NAME, FILE or NAME=FILE.")
    flags.DEFINE_list(
        "outputs", [], "Systems: FILE, NAME=FILE or published NAME; of --judgements, names."
    )
    flags.DEFINE_list("references", [], "What they are compared with, in the same form.")
    flags.DEFINE_string("data", "data", "Folder of published files, such as AlpaCare's data/.")
    flags.DEFINE_list("annotators", ["annotator-1"], "Names of the people, as the page shows them.")
    flags.DEFINE_integer("overlap", 1, "People for each pair; agreement needs 2.", lower_bound=1)
    flags.DEFINE_integer("items", None, "Items of each benchmark to draw.", lower_bound=1)
    flags.DEFINE_float(
        "width", None, "Or: as many as an interval of so many points needs.", lower_bound=0.1
    )
    flags.DEFINE_integer("seed", None, "Seed; without one, a secret is drawn.", lower_bound=0)
    flags.DEFINE_string("output", None, "Folder for the page and its key.")
    flags.DEFINE_bool("dry_run", False, "Only plan.")
    flags.mark_flag_as_required("output")
    cli.require_entries("annotators")
    flags.register_multi_flags_validator(
        ["judgements", "benchmark", "outputs", "references"],
        lambda given: (
            bool(given["judgements"]) != bool(given["benchmark"])
            and (given["judgements"] or (given["outputs"] and given["references"]))
        ),
        message="give either --judgements, or --benchmark with --outputs and --references",
    )
    flags.register_multi_flags_validator(
        ["items", "width", "judgements"],
        lambda given: (
            (given["items"] is None) != (given["width"] is None)
            and (given["width"] is None or given["judgements"])
        ),
        message="give either --items, or --width with --judgements",
    )
    flags.register_multi_flags_validator(
        ["annotators", "overlap"],
        lambda given: given["overlap"] <= len(set(given["annotators"])) == len(given["annotators"]),
        message="names must differ, and be at least as many as --overlap",
    )


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    FLAGS = flags.FLAGS
    for name in FLAGS.annotators:
        check_name("--annotators", name)
    labelled: set[tuple[str, str]] = set()
    if FLAGS.judgements:
        labels = exports.load(FLAGS.labels)
        sources = foreign.load(FLAGS.judgements)
        verdicts, people = reading.read(sources, labels.sources.get(PREFERENCE, []))
        texts = workdirs.read(sources, verdicts)
        labels.require_same_texts(texts)
        candidates = from_judgements(verdicts, texts, FLAGS.outputs, FLAGS.references)
        if people:
            labelled = {(m.benchmark, name) for m in people.tables for name in people.judged(m)}
    else:
        if FLAGS.labels:
            raise UsageError("--labels needs --judgements, which name the items and answers")
        candidates = from_files(FLAGS.benchmark, FLAGS.outputs, FLAGS.references, Path(FLAGS.data))
        verdicts = people = None
    counts: dict[str, int] = dict.fromkeys(candidates.pairs, FLAGS.items or 0)
    if FLAGS.width and verdicts:
        for need in planned(FLAGS.width / 100, verdicts, people, candidates):
            benchmark = need.matchup.benchmark
            counts[benchmark] = max(counts[benchmark], need.missing)
    if FLAGS.dry_run:
        return
    names = ("judgements", "labels", "benchmark", "outputs", "references", "data")
    names += ("annotators", "overlap", "items", "width")
    run(
        candidates,
        annotators=FLAGS.annotators,
        overlap=FLAGS.overlap,
        labelled=labelled,
        counts=counts,
        seed=FLAGS.seed,
        output=Path(FLAGS.output),
        settings={name: getattr(FLAGS, name) for name in names},
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main, output="output")
