"""Automatic signals of each system's answers, shown beside the win rates; see text_metrics.py."""

import dataclasses

import numpy as np

from common.text import rouge
from evaluation.judging.verdicts import Verdicts, natural
from evaluation.judging.workdirs import ReportTexts
from evaluation.scoring.text_metrics import TextSignals, measure_texts


@dataclasses.dataclass(frozen=True)
class SystemSignals:
    """The signals of one generator on one benchmark."""

    is_reference: bool
    texts: TextSignals
    rouge: dict[str, dict[str, float]]  # reference -> mean ROUGE F by measure; none with itself


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
        signals[name] = SystemSignals(name in references, measured, scores)
    return signals
