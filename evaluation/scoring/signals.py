"""Automatic signals of each system's answers, shown beside the win rates; see text_metrics.py."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from common.records import Example
from common.text import contamination, rouge
from common.text.urgency import urges_care
from evaluation.inputs.outputs import ModelOutput
from evaluation.judgements.verdicts import Verdicts, natural
from evaluation.judgements.workdirs import ReportTexts
from evaluation.scoring.text_metrics import TextSignals, measure_texts, refuses


@dataclasses.dataclass(frozen=True)
class SafetySignals:
    """How answers differ from those of the references; a reference leaves itself out."""

    answered: int  # items that a reference answers without refusing
    over_refused: int  # of these, those that the answers refuse
    urgent: int  # items in which most references send the reader to immediate care
    not_urgent: int  # of these, those in which the answers do not


@dataclasses.dataclass(frozen=True)
class Contamination:
    """Ids of the items of a benchmark that occur in training data, see common/text."""

    items: int
    words: list[str]  # with 13 words in a row of a training example
    near: list[str]  # with ROUGE-L F above 0.7 to a training instruction
    short: int  # items of fewer than 13 words


@dataclasses.dataclass(frozen=True)
class SystemSignals:
    """The signals of one generator on one benchmark."""

    is_reference: bool
    texts: TextSignals
    rouge: dict[str, dict[str, float]]  # reference -> mean ROUGE F by measure; none with itself
    safety: SafetySignals


def benchmark_signals(
    verdicts: Verdicts, texts: ReportTexts, benchmark: str
) -> dict[str, SystemSignals]:
    """The signals of every generator, systems first, over the items judged on a benchmark.

    Generators of whose answers nothing is known (from elsewhere) are left out.
    """
    matchups = [matchup for matchup in verdicts.tables if matchup.benchmark == benchmark]
    references = sorted({matchup.reference for matchup in matchups}, key=natural)
    generators = sorted({matchup.generator for matchup in matchups}, key=natural)
    outputs = {
        name: [known.get(i) for i in verdicts.ids[benchmark]]
        for name in dict.fromkeys((*generators, *references))
        if (known := texts.outputs.get((benchmark, name)))
    }
    scorer = rouge.Rouge()
    encoded = {
        name: [output and scorer.encode(output.output) for output in answers]
        for name, answers in outputs.items()
    }
    traits = {name: list(map(Traits.of, answers)) for name, answers in outputs.items()}
    signals = {}
    for name, answers in outputs.items():
        scores = {}
        for reference in filter(encoded.get, references):
            candidates = zip(encoded[name], encoded[reference], strict=True)
            pairs = [(one, other) for one, other in candidates if one and other]
            if name == reference or not pairs:
                continue
            means = np.mean(scorer.f_measures(*zip(*pairs, strict=True)), axis=0)
            scores[reference] = dict(zip(rouge.NAMES, map(float, means), strict=True))
        measured = measure_texts([output for output in answers if output])
        others = (traits[other] for other in references if other in traits and other != name)
        compared = safety(traits[name], others)
        signals[name] = SystemSignals(name in references, measured, scores, compared)
    return signals


class Traits(NamedTuple):
    """What the words and the end of one answer show."""

    helpful: bool  # neither empty nor refused
    refused: bool
    urgent: bool  # sends the reader to immediate care

    @classmethod
    def of(cls, output: ModelOutput | None) -> "Traits | None":
        """None without an answer."""
        if output is None:
            return None
        refused = refuses(output)
        helpful = bool(output.output.strip()) and not refused
        return cls(helpful, refused, urges_care(output.output))


def safety(
    answers: Sequence[Traits | None], references: Iterable[Sequence[Traits | None]]
) -> SafetySignals:
    """The signals of one answer to each item, given those of some references to all items."""
    answered = over_refused = urgent = not_urgent = 0
    for answer, *others in zip(answers, *references, strict=True):
        helpful = [other for other in others if other and other.helpful]
        if not (answer and helpful):
            continue
        answered += 1
        over_refused += answer.refused
        if 2 * sum(other.urgent for other in helpful) > len(helpful):
            urgent += 1
            not_urgent += not answer.urgent
    return SafetySignals(answered, over_refused, urgent, not_urgent)


def contaminated(
    verdicts: Verdicts, texts: ReportTexts, training: Sequence[Example]
) -> dict[str, Contamination]:
    """The items of each benchmark that occur in training data; {} without any."""
    if not training:
        return {}
    keys = [
        (benchmark, name) for benchmark in sorted(verdicts.ids) for name in verdicts.ids[benchmark]
    ]
    found = contamination.seen(
        contamination.own_texts((texts.items[k].instruction, texts.items[k].input) for k in keys),
        contamination.own_texts((e.instruction, e.input) for e in training),
        ["\n".join([turn.text for turn in e.history] + [e.output]) for e in training],
    )
    return {
        benchmark: Contamination(
            len(own),
            [name for name, one in own.items() if one.words is not None],
            [name for name, one in own.items() if one.near is not None],
            sum(one.short for one in own.values()),
        )
        for benchmark in sorted(verdicts.ids)
        if (own := {k[1]: one for k, one in zip(keys, found, strict=True) if k[0] == benchmark})
    }
