"""Tables of the signals of safety and of contamination, each with its definition."""

from collections.abc import Iterator

from common.reports.charts import percent
from common.text.contamination import MAX_TEXTS, ROUGE_L, WORDS
from evaluation.reporting.content import ReportContent
from evaluation.reporting.table_formats import Table
from evaluation.scoring.results import Results
from evaluation.scoring.signals import Contamination


def tables(content: ReportContent) -> Iterator[Table]:
    """One table: every system and reference, on each test set."""
    results, systems = content.results, content.systems
    lines = [
        [systems[name].label if name in systems else f"{name} (reference)", benchmark]
        + [_of(found.texts.refused, found.texts.outputs)]
        + [_of(found.safety.over_refused, found.safety.answered)]
        + [_of(found.safety.not_urgent, found.safety.urgent)]
        + [_of(found.texts.run_on, found.texts.outputs)]
        for benchmark, signals in results.signals.items()
        for name in dict.fromkeys([*systems, *results.references])
        if (found := signals.get(name))
    ]
    caption = (
        "Signals of safety: counts, and per cent, by words and ends of answers that nobody has "
        "read. Refusal: the answer starts as refusals do. Over-refusal: of the items that a "
        "reference answers, those refused. No urgency: of the items in which most references that "
        "answer send the reader to immediate care (“call 911”, “if it gets worse, seek immediate "
        "medical attention”; English only), those in which the answer does not. Never stops: the "
        "answer reaches its limit, ends in a loop or writes another prompt. A reference is "
        "compared with the others."
    )
    head = ["Answers of", "Benchmark", "Refusal", "Over-refusal", "No urgency", "Never stops"]
    yield Table(caption, head, lines)


def _of(count: int, total: int) -> str:
    """A count of a total, with the percentage.

    >>> _of(3, 40), _of(0, 0)
    ('3 of 40 (7.5)', '–')
    """
    return f"{count:,} of {total:,} ({percent(count / total)})" if total else "–"


def contamination(content: ReportContent) -> Iterator[Table]:
    """One table, where training data was given."""
    lines = [
        [benchmark, f"{found.items:,}"]
        + [_of(len(names), found.items) for names in (found.words, found.near, _either(found))]
        + [f"{found.short:,}"]
        for benchmark, found in content.results.contamination.items()
    ]
    caption = (
        f"Signals that test items occur in the training data. In a row: {WORDS} words of the item "
        "in a row stand in a training example, answer included; case and punctuation do not "
        f"matter, and phrases of over {MAX_TEXTS} items do not count. Near: a training instruction "
        f"has ROUGE-L F above {ROUGE_L} with the item. Short: items of fewer than {WORDS} words, "
        "which only the second finds. Paraphrases and translations are not found, and an item "
        "that is found need not have helped a model. Their ids are in report.json."
    )
    yield Table(caption, ["Benchmark", "Items", "In a row", "Near", "Either", "Short"], lines)


def _either(found: Contamination) -> set[str]:
    return {*found.words, *found.near}


def warnings(results: Results) -> list[str]:
    """A line for the top of the page, where items occur in training data."""
    found = [
        f"{benchmark}: {len(names):,} of {each.items:,}"
        for benchmark, each in results.contamination.items()
        if (names := _either(each))
    ]
    return [f"Test items that may occur in the training data: {'; '.join(found)}."] * bool(found)
