"""Tables, the reliability diagram and the page of a run, each with what its numbers mean."""

import dataclasses
from html import escape

from common.reports.charts import WIDTH, percent
from common.reports.drawing import Drawing, Line, Point, Polygon, Shape, Text
from common.reports.page import document, panels
from evaluation.multiple_choice.results import ChoiceResults
from evaluation.reporting.table_formats import Table, html, interval

LIKELIHOOD = (
    "Accuracy (acc): the option with the highest log-likelihood after the prompt. Normalised "
    "(acc_norm): the highest log-likelihood per character of the option; the same where options "
    "are compared by their letters."
)
GENERATED = (
    "Accuracy: by the letter that the model writes. A reply that names no option, or more than "
    "one, is invalid and counts as wrong."
)
CALIBRATION = (
    "Confidence is the probability of the chosen option among the options of its question. The "
    "expected calibration error (ECE) is the mean distance of confidence and accuracy over ten "
    "bins of equal width, weighted by their questions."
)


def summary(results: ChoiceResults) -> str:
    """The result in one line."""
    norm = f", normalised {interval(results.norm)}" if results.norm else ""
    counted = [
        f"{count:,} {text}"
        for count, text in (
            (results.invalid, "invalid replies, counted as wrong"),
            (results.failed, "questions without an answer, counted as wrong"),
            (results.joined, "questions in which the tokenizer joins prompt and option"),
        )
        if count
    ]
    return "; ".join(
        [
            f"accuracy {interval(results.accuracy)} %{norm} of {results.accuracy.questions:,} "
            f"questions (guessing: {percent(results.chance)}, always the commonest position: "
            f"{percent(results.commonest)})",
            *counted,
        ]
    )


def tables(results: ChoiceResults) -> dict[str, Table]:
    """The tables by the names of their files."""
    rates = {"All": (results.accuracy, results.norm)} | results.subjects
    lines = [
        [name or "(none)", f"{rate.questions:,}", interval(rate)]
        + ([interval(norm)] if results.norm else [])
        for name, (rate, norm) in rates.items()
    ]
    head = ["Subject", "Questions", "Accuracy"] + ["Normalised"] * bool(results.norm)
    meaning = LIKELIHOOD if results.norm else GENERATED
    caption = f"Accuracy in per cent, with 95 % intervals. {meaning}"
    found = {"accuracy": Table(caption, head, lines)}
    total = results.accuracy.questions
    positions = [
        [letter, percent(right / total), percent(chosen / total)]
        for letter, (right, chosen) in results.positions.items()
    ]
    caption = (
        "Signal of a preference for a position: per cent of the questions in which it is right, "
        "and in which it is chosen."
    )
    found["positions"] = Table(caption, ["Position", "Right", "Chosen"], positions)
    if calibrated := results.calibration:
        low, high = calibrated.by_chance
        lines = [
            [f"{one.low:.1f} to {one.high:.1f}", f"{one.questions:,}"]
            + [percent(one.confidence), interval(one.accuracy)]
            for one in calibrated.bins
            if one.questions
        ]
        caption = (
            f"{CALIBRATION} ECE {percent(calibrated.error)} %; a model of perfect "
            f"calibration would have {percent(low)} to {percent(high)} % with so many questions."
        )
        head = ["Confidence", "Questions", "Mean confidence", "Accuracy"]
        found["calibration"] = Table(caption, head, lines)
    return found


def reliability(results: ChoiceResults) -> Drawing | None:
    """Accuracy by confidence; None without likelihoods."""
    if not results.calibration:
        return None
    left, top, size = 56.0, 12.0, 284.0

    def point(confidence: float, accuracy: float) -> Point:
        return left + size * confidence, top + size * (1 - accuracy)

    shapes: list[Shape] = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        shapes.append(Line([point(0, share), point(1, share)], "grid"))
        label = f"{100 * share:.0f} %"
        (x, bottom), (_, y) = point(share, 0), point(0, share)
        shapes.append(Text(left - 6, y + 4, label, 10, "muted", "end"))
        shapes.append(Text(x, bottom + 15, label, 10, "muted", "middle"))
    shapes.append(Line([point(0, 0), point(1, 1)], "ink", 1, (4, 3), "confidence is accuracy"))
    for one in results.calibration.bins:
        if one.accuracy is None or one.confidence is None:
            continue
        rate, at = one.accuracy, one.confidence
        tip = (
            f"confidence {percent(at)} %: accuracy {interval(rate)} %, {one.questions:,} questions"
        )
        edges = one.low + 0.006, one.high - 0.006
        corners = [point(x, y) for y in (0, rate.rate) for x in edges]
        area = [corners[0], corners[1], corners[3], corners[2]]
        strength = 0.25 + 0.65 * one.questions / results.accuracy.questions
        shapes.append(Polygon(area, "series0", tip, strength))
        shapes.append(Line([point(at, rate.low), point(at, rate.high)], "ink", 1.2, tip=tip))
        x, y = point(at, rate.rate)
        shapes.append(Polygon([(x - 4, y), (x, y - 4), (x + 4, y), (x, y + 4)], "series1", tip))
    middle = top + size / 2
    shapes.append(Text(12, middle, "accuracy", 11, "muted", "middle", angle=-90))
    shapes.append(Text(left + size / 2, top + size + 32, "confidence", 11, "muted", "middle"))
    return Drawing("Accuracy by confidence", WIDTH, top + size + 40, shapes)


def page(title: str, about: str, results: ChoiceResults) -> str:
    """`choices.html`, one self-contained file."""
    figure = reliability(results)
    body = [
        f"<header><h1>{escape(title)}</h1><p class=muted>{escape(about)}</p></header>",
        f"<p>{escape(summary(results).capitalize())}.</p>",
    ]
    for name, table in tables(results).items():
        plain = html(dataclasses.replace(table, caption=""))
        body.append(f"<h2>{name.capitalize()}</h2><p>{escape(table.caption)}</p>{plain}")
    if figure:
        note = "Bars: bins of confidence, darker with more questions. Lines: 95 % intervals."
        body.append(f"{panels([figure])}<p class=muted>{note}</p>")
    return document(title, "\n".join(body))
