"""What a reader must know before looking at a rate."""

from collections.abc import Iterator

from evaluation.reporting.sections import people, safety
from evaluation.scoring.results import Results
from evaluation.scoring.signals import SystemSignals

MAX_CUT_SHARE = 0.05  # of the answers of one model; the page warns above it
MAX_PREFERENCE = 0.1  # of a judge for a position, from 0.5; the page warns above it


def cautions(results: Results) -> list[str]:
    """One line each."""
    own = *_judges(results), *_partly(results), *_cut(results), *_empty(results)
    return [*own, *safety.warnings(results), *people.warnings(results)]


def _judges(results: Results) -> Iterator[str]:
    for judge, summary in results.judges.items():
        position = summary.position
        if summary.one_order:
            yield (
                f"{judge}: each pair was judged once, so a preference for the first or the second "
                "answer is part of its rates, and cannot be measured."
            )
        if position.invalid:
            yield f"{judge}: {position.invalid:,} of {position.verdicts:,} verdicts are invalid."
        preference = position.first_preference
        if preference is not None and abs(preference - 0.5) > MAX_PREFERENCE:
            side = "first" if preference > 0.5 else "second"
            share = 100 * max(preference, 1 - preference)
            yield f"{judge} names the {side} answer in {share:.0f} % of its decisions."


def _partly(results: Results) -> Iterator[str]:
    partly = [
        f"{m.generator} by {m.judge} on {m.benchmark}: {rate.items:,} of {total:,}"
        for m, rate in results.rates.items()
        if rate.items < (total := results.benchmarks[m.benchmark].items)
        and m.reference == results.headline[m.judge, m.benchmark]
    ]
    if partly:
        yield f"Not all items were judged, so rates are over different ones: {'; '.join(partly)}."


def _signals(results: Results) -> Iterator[tuple[str, SystemSignals]]:
    for benchmark, signals in results.signals.items():
        for generator, found in signals.items():
            yield f"{generator} on {benchmark}", found


def _cut(results: Results) -> Iterator[str]:
    """References first: a truncated one favours every system, a truncated answer harms its own."""
    sides = {
        True: "References that appear truncated, which favours the models",
        False: "Answers of systems that appear truncated, which counts against them",
    }
    for is_reference, text in sides.items():
        cut = [
            f"{name}: {found.texts.cut:,} of {found.texts.outputs:,}"
            for name, found in _signals(results)
            if found.is_reference == is_reference
            and found.texts.cut > MAX_CUT_SHARE * found.texts.outputs
        ]
        if cut:
            yield f"{text}: {'; '.join(cut)}."


def _empty(results: Results) -> Iterator[str]:
    empty = [
        f"{name}: {found.texts.empty:,} of {found.texts.outputs:,}"
        + f" ({found.texts.too_long:,} because the prompt is too long)" * bool(found.texts.too_long)
        for name, found in _signals(results)
        if found.texts.empty
    ]
    if empty:
        yield f"Empty answers, judged as they are: {'; '.join(empty)}."
