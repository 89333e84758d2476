"""The pairs of answers that people could compare: what was judged, or what files hold."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common.messages import log
from common.sections import UsageError
from evaluation.annotation.pairs import AnswerPair, draw_items
from evaluation.inputs import benchmarks, outputs
from evaluation.judgements.verdicts import Verdicts
from evaluation.judgements.workdirs import ReportTexts
from evaluation.scoring import score


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What can be annotated."""

    pairs: Mapping[str, Mapping[str, list[AnswerPair]]]  # benchmark -> id -> pairs
    scores: Mapping[str, np.ndarray]  # benchmark -> [items] mean score by judges; 0 without any


def from_judgements(
    verdicts: Verdicts, texts: ReportTexts, systems: Sequence[str], names: Sequence[str]
) -> Candidates:
    """The judged pairs of `systems` and references `names`; of all, where these are empty."""
    for flag, field, given in (
        ("outputs", "generator", systems),
        ("references", "reference", names),
    ):
        if unknown := [name for name in given if name not in verdicts.names(field)]:
            raise UsageError(
                f"--{flag}: {unknown[0]!r} was not judged; choose from "
                f"{', '.join(verdicts.names(field))}"
            )
    pairs: dict[str, dict[str, list[AnswerPair]]] = {}
    sums: dict[str, list[np.ndarray]] = {}
    seen = set()
    for matchup, table in verdicts.tables.items():
        benchmark, reference, generator = matchup[1:]
        if (systems and generator not in systems) or (names and reference not in names):
            continue
        bounds = score.item_bounds(table, verdicts.scores.get(matchup))
        sums.setdefault(benchmark, []).append(np.nan_to_num(bounds.mean(axis=0), nan=0.5))
        if matchup[1:] in seen:
            continue
        seen.add(matchup[1:])
        if not texts.cover(matchup, verdicts.judged(matchup)):
            raise ValueError(
                f"the texts of {matchup} are not known; annotate from the files: --benchmark, "
                "--outputs and --references"
            )
        model, other = (texts.outputs[benchmark, name] for name in (generator, reference))
        for name in verdicts.judged(matchup):
            pair = AnswerPair(texts.items[benchmark, name], model[name], other[name])
            pairs.setdefault(benchmark, {}).setdefault(name, []).append(pair)
    scores = {}
    for benchmark, own in pairs.items():
        mean = np.mean(sums[benchmark], axis=0)
        by_id = dict(zip(verdicts.ids[benchmark], mean.tolist(), strict=True))
        scores[benchmark] = np.array([by_id[name] for name in own])
    return Candidates(pairs, scores)


def from_files(
    benchmark: str, systems: Sequence[str], references: Sequence[str], data: Path
) -> Candidates:
    """Each system's answers with each reference's."""
    items = benchmarks.load(benchmark, data)
    models, others = (
        [outputs.load(source, items, data) for source in sources]
        for sources in (systems, references)
    )
    names = [answers[0].generator for answers in (*models, *others)]
    if len(set(names)) < len(names):
        raise UsageError("--outputs and --references: names must be unique; give NAME=FILE")
    pairs = {
        item.id: [AnswerPair(item, m[i], r[i]) for m in models for r in others]
        for i, item in enumerate(items)
    }
    name = items[0].benchmark
    return Candidates({name: pairs}, {name: np.zeros(len(items))})


def draw(
    candidates: Candidates, labelled: set[tuple[str, str]], counts: Mapping[str, int], seed: int
) -> list[AnswerPair]:
    """All pairs of `counts` items of each benchmark, drawn from those without a label."""
    chosen = []
    for benchmark, items in sorted(candidates.pairs.items()):
        free = [i for i, name in enumerate(items) if (benchmark, name) not in labelled]
        known = list(items)
        names = [known[i] for i in free]
        scores = candidates.scores[benchmark][free]
        if len(free) < counts[benchmark]:
            log(f"{benchmark}: {len(free):,} items are left to label, not {counts[benchmark]:,}")
        generator = np.random.default_rng([seed, len(chosen)])
        for name in draw_items(names, scores, counts[benchmark], generator):
            chosen += items[name]
    return chosen


def warn_of_names(pairs: Sequence[AnswerPair]) -> None:
    """Reports answers that name a system: the page hides no word of an answer."""
    names = sorted({output.generator for pair in pairs for output in pair[1:]})
    answers = {(o.benchmark, o.generator, o.id): o.output.lower() for p in pairs for o in p[1:]}
    for name in names:
        if count := sum(name.lower() in text for text in answers.values()):
            log(f"{count:,} answers contain {name!r}, which annotators will see")
