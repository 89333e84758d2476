"""Makes tables, figures and a page with transcripts from judged workdirs.

    python -m evaluation.report --judgements=D,... --output=DIR [--labels=F,...] [--systems=F]
    python -m evaluation.report --judgements=annotations.json,gpt-4_pair.jsonl --output=DIR

Writes report.json, report.html (one self-contained file), figures/*.png and *.svg, tables/*.md and
*.tex, and run.json into --output. --judgements are workdirs of evaluation.judge and files of
judgements: alpaca_eval's annotations, FastChat's pairs, or the form of docs/file_formats.md;
NAME=FILE names the benchmark. --labels are judgements of people, in the same format with judge
"human", or what annotators exported from a page of evaluation.annotate: files, or the folder with
its key; --systems names systems and their backbones (evaluation/reporting/systems.py). The same
judgements give the same files.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from common import cli, provenance
from common.messages import log
from common.reports.drawing import missing_glyphs
from common.sections import UsageError
from evaluation.annotation import exports
from evaluation.judging import foreign, reading, workdirs
from evaluation.judging.foreign import ForeignJudgements
from evaluation.judging.verdicts import JUDGEMENTS_FILE
from evaluation.reporting import figures, page, systems, tables, transcripts
from evaluation.reporting.table_formats import Table, latex, markdown
from evaluation.scoring.measurement import measure
from evaluation.scoring.people import PREFERENCE


def write_tables(directory: Path, built: dict[str, list[Table]]) -> None:
    """Writes one Markdown and one LaTeX file for each name."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, group in built.items():
        labels = [name if len(group) == 1 else f"{name}-{i + 1}" for i in range(len(group))]
        tex = [latex(table, label) for table, label in zip(group, labels, strict=True)]
        provenance.write_text(directory / f"{name}.tex", "\n".join(tex))
        provenance.write_text(directory / f"{name}.md", "\n".join(map(markdown, group)))


def clear(directory: Path, suffixes: Sequence[str], prefixes: Sequence[str]) -> None:
    """Deletes the files of an earlier report, which may have had more of them.

    Files with other names, such as those of a paper in the same folder, stay.
    """
    for path in directory.glob("*"):
        if path.suffix in suffixes and path.stem.split("-")[0] in prefixes:
            path.unlink()


def run(
    *,
    judgements: Sequence[str],
    output: Path,
    labels: Sequence[str],
    systems_file: str,
    seed: int,
    page_mib: float,
    baseline: str = "",
) -> None:
    """Writes a report; see the flags for the arguments.

    Raises:
      FileNotFoundError, ValueError: a file is missing or malformed, or `output` is a workdir.
    """
    if (output / JUDGEMENTS_FILE).exists():
        raise UsageError(
            f"{output} is a workdir of evaluation.judge, whose run.json would be overwritten; "
            "choose another --output"
        )
    sources = foreign.load(judgements, baseline)
    asked = exports.load(labels)
    by_question = dict(asked.sources)
    judged, people = reading.read(sources, by_question.pop(PREFERENCE, []))
    others = {name: reading.read_people(own, judged) for name, own in by_question.items()}
    log(f"{judged.count:,} verdicts, {len(judged.tables):,} matchups")
    texts = workdirs.read(sources, judged)
    asked.require_same_texts(texts)
    inputs = [
        source.path if isinstance(source, ForeignJudgements) else source / JUDGEMENTS_FILE
        for source in sources
    ]
    settings = {
        "judgements": {str(path): provenance.sha256(path) for path in inputs},
        "labels": {str(path): provenance.sha256(path) for path in asked.paths},
        "baseline": baseline,
        "systems": provenance.sha256(systems_file) if systems_file else None,
        "seed": seed,
        "page_mib": page_mib,
    }
    record = provenance.describe(config=settings)
    names = systems.read(systems_file, judged.names("generator"))  # before the slow part
    results = measure(judged, people, texts, seed=seed, other_questions=others)
    ranked = {name: names[name] for name in results.systems}
    drawn = figures.build(results, ranked)
    output.mkdir(parents=True, exist_ok=True)
    (output / "run.json").unlink(missing_ok=True)  # written last: it marks a complete report
    provenance.write_json(output / "report.json", results.record())
    clear(output / "figures", (".png", ".svg"), page.FIGURE_PREFIXES)
    if missing := figures.write(output / "figures", drawn):
        log(missing_glyphs(missing))
    built = tables.build(results, ranked)
    clear(output / "tables", (".md", ".tex"), page.TABLE_PREFIXES)
    write_tables(output / "tables", built)
    packed = transcripts.pack(
        judged, people, texts, systems=ranked, seed=seed, max_bytes=page_mib * 2**20
    )
    html = page.build(results, drawn, built, packed)
    provenance.write_text(output / "report.html", html)
    provenance.write_json(output / "run.json", record | {"end": provenance.now()})
    log(
        f"{output / 'report.html'}: {len(html.encode()) / 2**20:.1f} MiB, transcripts of "
        f"{packed.shown:,} of {packed.items:,} items"
    )


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_list("judgements", None, "Workdirs of evaluation.judge, FILE or NAME=FILE.")
    flags.DEFINE_string(
        "baseline", "", "Model to compare with, where a file has pairs of all models."
    )
    flags.DEFINE_string("output", None, "Folder for the report.")
    flags.DEFINE_list("labels", [], "Labels by people: folders of a page, exports, JSONL files.")
    flags.DEFINE_string("systems", "", "JSON file with names and backbones of systems.")
    flags.DEFINE_integer(
        "seed", 0, "Seed of sampled intervals and of the sample of transcripts.", lower_bound=0
    )
    flags.DEFINE_float(
        "page_mib",
        20.0,
        "Approximate maximum size of the transcripts in the page.",
        lower_bound=0.1,
    )
    flags.mark_flags_as_required(["judgements", "output"])
    cli.require_entries("judgements")


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    del argv
    FLAGS = flags.FLAGS
    run(
        judgements=FLAGS.judgements,
        output=Path(FLAGS.output),
        labels=FLAGS.labels,
        systems_file=FLAGS.systems,
        seed=FLAGS.seed,
        page_mib=FLAGS.page_mib,
        baseline=FLAGS.baseline,
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main, output="output")
