"""Tables, figures and a page with transcripts, from the workdirs of evaluation.judge.

    python -m evaluation.report --judgements=D,... --output=DIR [--labels=F,...] [--systems=F]

Writes report.json, report.html (one file that opens from disk), figures/*.png and *.svg,
tables/*.md and *.tex, and run.json into --output. --labels are judgements of people, in the same
format with judge "human"; --systems names systems and their backbones
(evaluation/reporting/systems.py).
The same judgements give the same files.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from common import cli, provenance
from common.reports import drawing
from evaluation.judging import verdicts, workdirs
from evaluation.reporting import figures, systems, table_formats, tables, transcripts
from evaluation.reporting import page as report_page
from evaluation.scoring import results


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write_tables(directory: Path, found: dict[str, list[table_formats.Table]]) -> None:
    """One Markdown and one LaTeX file for each name."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, mine in found.items():
        labels = [name if len(mine) == 1 else f"{name}-{i + 1}" for i in range(len(mine))]
        tex = [table_formats.latex(t, label) for t, label in zip(mine, labels, strict=True)]
        provenance.write_text(directory / f"{name}.tex", "\n".join(tex))
        text = "\n".join(map(table_formats.markdown, mine))
        provenance.write_text(directory / f"{name}.md", text)


def clear(directory: Path, endings: Sequence[str], names: Sequence[str]) -> None:
    """Takes away what an earlier report left, since this one may have fewer figures.

    Other files, such as those of a paper in the same folder, have other names and stay.
    """
    for path in directory.glob("*"):
        if path.suffix in endings and path.stem.split("-")[0] in names:
            path.unlink()


def run(
    *,
    judgements: Sequence[str],
    output: Path,
    labels: Sequence[str],
    systems_file: str,
    seed: int,
    page_mib: float,
) -> None:
    """Reads, counts and writes; see the flags for the arguments.

    Raises:
      FileNotFoundError, ValueError: a file is missing or wrong, or `output` is a judge's workdir.
    """
    if (output / verdicts.FILE).exists():
        raise ValueError(
            f"{output} is a workdir of evaluation.judge, whose run.json would be lost; choose "
            "another --output"
        )
    found, people = verdicts.read(judgements, labels)
    say(f"{found.count:,} verdicts, {len(found.cells):,} cells")
    texts = workdirs.read(judgements, found)
    inputs = [Path(directory) / verdicts.FILE for directory in judgements]
    settings = {
        "judgements": {str(path): provenance.sha256(path) for path in inputs},
        "labels": {str(path): provenance.sha256(path) for path in labels},
        "systems": provenance.sha256(systems_file) if systems_file else None,
        "seed": seed,
        "page_mib": page_mib,
    }
    record = provenance.describe(config=settings)
    by_name = systems.read(systems_file, found.names("generator"))  # before what takes long
    measured = results.measure(found, people, texts, seed=seed)
    named = {name: by_name[name] for name in measured["systems"]}
    drawn = figures.build(measured, named)
    output.mkdir(parents=True, exist_ok=True)
    (output / "run.json").unlink(missing_ok=True)  # written last: where it is, all are
    provenance.write_json(output / "report.json", measured)
    clear(output / "figures", (".png", ".svg"), report_page.FIGURES)
    missing = figures.write(output / "figures", drawn)
    if missing:
        say(drawing.boxes(missing))
    built = tables.build(measured, named)
    clear(output / "tables", (".md", ".tex"), report_page.TABLES)
    write_tables(output / "tables", built)
    packed = transcripts.pack(
        found, people, texts, systems=named, seed=seed, most_bytes=page_mib * 2**20
    )
    page = report_page.build(measured, drawn, built, packed)
    provenance.write_text(output / "report.html", page)
    provenance.write_json(output / "run.json", record | {"end": provenance.now()})
    say(
        f"{output / 'report.html'}: {len(page.encode()) / 2**20:.1f} MiB, transcripts of "
        f"{packed.shown:,} of {packed.items:,} items"
    )


def define_flags() -> None:
    flags.DEFINE_list("judgements", None, "Workdirs of evaluation.judge.")
    flags.DEFINE_string("output", None, "Folder for the report.")
    flags.DEFINE_list("labels", [], "Judgements of people: JSONL files.")
    flags.DEFINE_string("systems", "", "JSON file that names systems and their backbones.")
    flags.DEFINE_integer(
        "seed", 0, "Of what is drawn: some intervals, and items of a small page.", lower_bound=0
    )
    flags.DEFINE_float(
        "page_mib", 20.0, "About how large the transcripts in the page may be.", lower_bound=0.1
    )
    flags.mark_flags_as_required(["judgements", "output"])
    cli.require_entries("judgements")


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    run(
        judgements=FLAGS.judgements,
        output=Path(FLAGS.output),
        labels=FLAGS.labels,
        systems_file=FLAGS.systems,
        seed=FLAGS.seed,
        page_mib=FLAGS.page_mib,
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
