"""Makes tables, figures and a page with transcripts from judged workdirs.

    python -m evaluation.report --judgements=D,... --output=DIR [--labels=F,...] [--title=TEXT]
    python -m evaluation.report --judgements=annotations.json,gpt-4_pair.jsonl --output=DIR
    python -m evaluation.report --judgements=D --output=DIR --systems=names.json,alpacare-*,alpaca

Writes report.json, report.html (one self-contained file), figures/*.png and *.svg, tables/*.md and
*.tex, and run.json into --output. --judgements are workdirs of evaluation.judge and files of
judgements: alpaca_eval's annotations, FastChat's pairs, or the form of docs/file_formats.md;
NAME=FILE names the benchmark. --labels are judgements of people, in the same format with judge
"human", or what annotators exported from a page of evaluation.annotate: files, or the folder with
its key. --systems, --references, --judges and --benchmarks choose what is reported, by names or
patterns; a JSON file in --systems gives systems their names and backbones (its form is in
evaluation/reporting/systems.py). --questions are shown with all answers side by side. --training
is data in which test items are looked for. The same judgements give the same files on the same day.

checklists/ has TRIPOD-LLM and CHART, answered as far as the judged workdirs and the runs of
--records know. With --hub_datasets, eval_results/SYSTEM/ has files for `.eval_results` of its model
repository: win rates, and what rubric and choices runs among --records measured.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from common import cli, provenance
from common.messages import log
from common.records import read_examples
from common.reports.drawing import missing_glyphs
from common.sections import UsageError
from evaluation.annotation import exports
from evaluation.judgements import foreign, reading, workdirs
from evaluation.judgements.foreign import ForeignJudgements
from evaluation.judgements.verdicts import JUDGEMENTS_FILE, Verdicts
from evaluation.publishing.documents import ReportDocuments
from evaluation.reporting import (
    figures,
    judge_settings,
    outline,
    page,
    systems,
    table_formats,
    transcripts,
)
from evaluation.reporting.content import Chapter, ReportContent
from evaluation.reporting.sections.questions import choose, collect
from evaluation.reporting.selection import EVERYTHING, Selection, select
from evaluation.scoring.measurement import measure
from evaluation.scoring.people import PREFERENCE
from evaluation.scoring.results import Results


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
    labels: Sequence[str] = (),
    systems_file: str = "",
    selection: Selection = EVERYTHING,
    questions: Sequence[str] = (),
    random_questions: int = 2,
    title: str = "Evaluation report",
    seed: int = 0,
    page_mib: float = 20.0,
    baseline: str = "",
    training: Sequence[str] = (),
    records: Sequence[str] = (),
    hub_datasets: Sequence[str] = (),
) -> None:
    """Writes a report; see the flags for the arguments.

    Raises:
      FileNotFoundError, ValueError: a file is missing or malformed, or `output` is a workdir.
    """
    _require_no_workdir(output)
    sources = foreign.load(judgements, baseline)
    judged_in = [source for source in sources if isinstance(source, Path)]
    documents = ReportDocuments.read(judged_in, records, hub_datasets)
    asked = exports.load(labels)
    everything, by_question = _read(sources, asked)
    texts = workdirs.read(sources, everything)
    asked.require_same_texts(texts)
    judged, by_question = select(selection, everything, by_question)
    people = by_question.pop(PREFERENCE, None)
    log(f"{judged.count:,} verdicts, {len(judged.tables):,} matchups")
    record = _describe(
        sources,
        asked,
        systems_file,
        baseline=baseline,
        selection=dataclasses.asdict(selection),
        questions=list(questions),
        random_questions=random_questions,
        title=title,
        seed=seed,
        page_mib=page_mib,
    )
    names = systems.read(systems_file, everything.names("generator"))  # before the slow part
    chosen = choose(judged, texts, questions, random_questions, seed)
    runs = judge_settings.read(sources)
    learned = [example for path in training for example in read_examples(path)]
    results = measure(
        judged, people, texts, seed=seed, other_questions=by_question, training=learned
    )
    ranked = {name: names[name] for name in results.systems}
    content = ReportContent(results, ranked, collect(judged, texts, ranked, chosen))
    chapters = outline.build(content)
    packed = transcripts.pack(
        judged, people, texts, systems=ranked, seed=seed, max_bytes=page_mib * 2**20
    )
    html = page.build(content, chapters, packed, runs=runs, title=title, made=_made(record))
    _write(output, results, chapters, html)
    documents.write(output, results.record())
    ended = {"sha256": provenance.sha256(output / "report.html"), "end": provenance.now()}
    provenance.write_json(output / "run.json", record | ended)
    log(
        f"{output / 'report.html'}: {len(html.encode()) / 2**20:.1f} MiB, transcripts of "
        f"{packed.shown:,} of {packed.items:,} items"
    )


def _require_no_workdir(output: Path) -> None:
    if (output / JUDGEMENTS_FILE).exists():
        raise UsageError(
            f"{output} is a workdir of evaluation.judge, whose run.json would be overwritten; "
            "choose another --output"
        )


def _describe(
    sources: Sequence[Path | ForeignJudgements],
    asked: exports.PeopleLabels,
    systems_file: str,
    **settings: Any,
) -> dict[str, Any]:
    """The record of run.json, with the digests of what is read."""
    inputs = [
        source.path if isinstance(source, ForeignJudgements) else source / JUDGEMENTS_FILE
        for source in sources
    ]
    return provenance.describe(
        config={
            "judgements": {str(path): provenance.sha256(path) for path in inputs},
            "labels": {str(path): provenance.sha256(path) for path in asked.paths},
            "systems": provenance.sha256(systems_file) if systems_file else None,
            **settings,
        }
    )


def _read(
    sources: Sequence[Path | ForeignJudgements], asked: exports.PeopleLabels
) -> tuple[Verdicts, dict[str, Verdicts]]:
    """(verdicts of judges, those of people by question)."""
    verdicts, people = reading.read(sources, asked.sources.get(PREFERENCE, []))
    by_question = {PREFERENCE: people} if people else {}
    others = {name: own for name, own in asked.sources.items() if name != PREFERENCE}
    return verdicts, by_question | {
        name: reading.read_people(own, verdicts) for name, own in others.items()
    }


def _write(output: Path, results: Results, chapters: Sequence[Chapter], html: str) -> None:
    """Replaces an earlier report; without run.json, which is written last and marks a whole one."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "run.json").unlink(missing_ok=True)
    provenance.write_json(output / "report.json", results.record())
    clear(output / "figures", (".png", ".svg"), outline.FIGURE_PREFIXES)
    drawn = {name: one for chapter in chapters for name, one in chapter.figures.items()}
    if missing := figures.write(output / "figures", drawn):
        log(missing_glyphs(missing))
    clear(output / "tables", (".md", ".tex"), outline.TABLE_PREFIXES)
    for chapter in chapters:
        for name, found in chapter.tables.items():
            table_formats.write(output / "tables", name, found)
    provenance.write_text(output / "report.html", html)


def _made(record: dict[str, Any]) -> str:
    """When and with which versions a report was made."""
    versions = [f"Python {record['python']}"]
    versions += [f"{name} {record['packages'][name]}" for name in ("numpy", "matplotlib")]
    commit = record["git_commit"] or "an unknown commit"
    return f"Made on {record['start'][:10]} by alpacare-jax, {commit}; {', '.join(versions)}."


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_list("judgements", None, "Workdirs of evaluation.judge, FILE or NAME=FILE.")
    flags.DEFINE_string(
        "baseline", "", "Model to compare with, where a file has pairs of all models."
    )
    flags.DEFINE_string("output", None, "Folder for the report.")
    flags.DEFINE_list("labels", [], "Labels by people: folders of a page, exports, JSONL files.")
    flags.DEFINE_list("training", [], "Training data, in which test items are looked for.")
    flags.DEFINE_list(
        "systems", [], "Systems to report, names or patterns; FILE.json: names and backbones."
    )
    flags.DEFINE_list("references", [], "References to report, names or patterns; none: all.")
    flags.DEFINE_list("judges", [], "Judges to report, names or patterns; none: all.")
    flags.DEFINE_list("benchmarks", [], "Test sets to report, names or patterns; none: all.")
    flags.DEFINE_list("questions", [], "Questions to show with all answers: ID or BENCHMARK/ID.")
    flags.DEFINE_integer(
        "random_questions", 2, "How many to draw where --questions names none.", lower_bound=0
    )
    flags.DEFINE_string("title", "Evaluation report", "Title of the page.")
    flags.DEFINE_list(
        "records",
        [],
        "Runs behind the systems, for checklists/ and eval_results/: workdirs of train, choices, "
        "rubric, ...; folders or files of run.json.",
    )
    flags.DEFINE_list(
        "hub_datasets",
        [],
        "Test sets on the Hub, for eval_results/: BENCHMARK=ORG/NAME or BENCHMARK=ORG/NAME:TASK.",
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Seed of intervals of agreement, of --random_questions and the sample of transcripts.",
        lower_bound=0,
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
    files = [name for name in FLAGS.systems if name.endswith(".json")]
    if len(files) > 1:
        raise UsageError(f"--systems: one file of names, not {', '.join(files)}")
    run(
        judgements=FLAGS.judgements,
        output=Path(FLAGS.output),
        labels=FLAGS.labels,
        systems_file=files[0] if files else "",
        selection=Selection(
            generator=[name for name in FLAGS.systems if name not in files],
            reference=FLAGS.references,
            judge=FLAGS.judges,
            benchmark=FLAGS.benchmarks,
        ),
        questions=FLAGS.questions,
        random_questions=FLAGS.random_questions,
        title=FLAGS.title,
        seed=FLAGS.seed,
        page_mib=FLAGS.page_mib,
        baseline=FLAGS.baseline,
        training=FLAGS.training,
        records=FLAGS.records,
        hub_datasets=FLAGS.hub_datasets,
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main, output="output")
