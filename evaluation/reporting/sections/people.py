"""The report's tables of people's verdicts, and of judges' rates corrected by them."""

from collections.abc import Iterator

from common.reports.charts import percent
from evaluation.judgements.verdicts import Matchup
from evaluation.reporting.content import ReportContent
from evaluation.reporting.table_formats import Table, interval, number, with_interval
from evaluation.scoring.people import PREFERENCE
from evaluation.scoring.results import Results
from evaluation.statistics.correction import (
    FEW_DISAGREEMENTS,
    FEW_LABELS,
    MIN_LABELS,
    UNLIKE,
    Correction,
)

FEW, ALIKE = "*", "†"
"""Marks of labels that are few, and of labels that all agree with the judge."""


def agreement(content: ReportContent) -> Iterator[Table]:
    """How far people agree among themselves."""
    lines = [
        [question, benchmark, f"{found.people:,}", f"{found.units:,}", percent(found.same)]
        + [with_interval(found.alpha, found.low, found.high, number)]
        for (question, benchmark), found in content.results.people.agreement.items()
    ]
    caption = (
        "Agreement of people with each other: pairs of answers that two or more of them judged, "
        "per cent of two people's verdicts that are the same (model, reference, neither), and "
        "Krippendorff's alpha with its 95 % interval, items resampled. No judge can be expected "
        "to agree with people more than they do with each other."
    )
    head = ["Question", "Benchmark", "People", "Pairs", "Same", "Alpha"]
    yield Table(caption, head, lines)


def rates(content: ReportContent) -> Iterator[Table]:
    """People's win rates on the items that they judged, by question."""
    lines = [
        [content.systems[generator].label, benchmark, reference, question]
        + [f"{rate.valid:,}", interval(rate)]
        for (question, *pair), rate in content.results.people.rates.items()
        for benchmark, reference, generator in [pair]
        if rate.valid
    ]
    caption = (
        "Win rates by people, on the items that they judged only, in per cent with 95 % intervals; "
        "an item that several people judged counts once, with their mean."
    )
    head = ["System", "Benchmark", "Reference", "Question", "Items", "Rate"]
    yield Table(caption, head, lines)


def corrected(content: ReportContent) -> Iterator[Table]:
    """The judges' rates, raw and corrected; a table for each judge and benchmark."""
    results, systems = content.results, content.systems
    for judge, benchmark in results.headline:
        lines = []
        for reference in results.references_of(judge, benchmark):
            for generator, system in systems.items():
                key = Matchup(judge, benchmark, reference, generator)
                if found := results.people.corrections.get(key):
                    lines.append([system.label, reference, *_correction(found)])
        caption = (
            f"Win rates on {benchmark} that people would give on all items, corrected for {judge}, "
            "in per cent with 95 % intervals. Raw: the judge's, an invalid verdict as a tie; "
            "people: labels alone; PPI++: labels and judge, which needs labelled items that were "
            "drawn at random; Rogan–Gladen: by the judge's confusion with people. Power: how far "
            "PPI++ relies on the judge, 0 to 1. Worth: labels that alone would give an interval "
            f"as narrow as PPI++'s. {FEW} fewer than {FEW_LABELS} labelled items, {ALIKE} fewer "
            f"than {FEW_DISAGREEMENTS} labels that differ from the judge: the interval may be too "
            "narrow."
        )
        head = ["System", "Reference", "Labelled", "Raw", "People", "PPI++"]
        yield Table(caption, [*head, "Rogan–Gladen", "Power", "Worth"], lines)


def _correction(found: Correction) -> list[str]:
    mark = FEW * (found.labelled < FEW_LABELS) + ALIKE * (found.disagreements < FEW_DISAGREEMENTS)
    return [
        f"{found.labelled:,} of {found.items:,}{mark}",
        percent(found.raw),
        *(
            interval(estimate) if estimate.low is not None else "not bounded"
            for estimate in (found.people, found.ppi, found.rogan_gladen)
        ),
        f"{found.power:.2f}",
        f"{found.worth:,.0f} for {found.labels:,}",
    ]


def warnings(results: Results) -> list[str]:
    """What a reader must know before trusting a corrected rate."""
    found = results.people
    unlike = [
        f"{m.generator} against {m.reference} on {m.benchmark} by {m.judge}"
        for m, c in found.corrections.items()
        if abs(c.unlike) > UNLIKE
    ]
    texts = []
    if unlike:
        texts.append(
            "People judged items on which the judge's rate is not that of the others, so they were "
            "not drawn at random, and the correction by PPI++ does not hold: "
            f"{'; '.join(unlike)}."
        )
    if any(question == PREFERENCE for question, *_ in found.rates) and not found.corrections:
        texts.append(
            f"People judged fewer than {MIN_LABELS} items of each pair of systems: too few to "
            "correct a rate."
        )
    return texts
