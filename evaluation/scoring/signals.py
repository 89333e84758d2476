"""The automatic signals of each system's answers, beside the win rates; see text_metrics.py."""

import dataclasses
from typing import Any

import numpy as np

from common import rouge
from evaluation.judging.verdicts import Verdicts, natural
from evaluation.judging.workdirs import Texts
from evaluation.scoring import text_metrics


def measure(verdicts: Verdicts, texts: Texts) -> list[dict[str, Any]]:
    """A record for each benchmark and generator, references too, over the items judged there.

    `rouge` is the mean ROUGE F against each reference, by reference and measure; a reference has
    none against itself.
    """
    return [
        record
        for benchmark in sorted(verdicts.ids)
        for record in _of_benchmark(verdicts, texts, benchmark)
    ]


def _of_benchmark(verdicts: Verdicts, texts: Texts, benchmark: str) -> list[dict[str, Any]]:
    cells = [cell for cell in verdicts.cells if cell.benchmark == benchmark]
    references = sorted({cell.reference for cell in cells}, key=natural)
    generators = sorted({cell.generator for cell in cells}, key=natural)
    outputs = {
        name: [texts.outputs[benchmark, name].get(i) for i in verdicts.ids[benchmark]]
        for name in dict.fromkeys((*generators, *references))
    }
    compare = rouge.Rouge()
    encoded = {
        name: [output and compare.encode(output.output) for output in mine]
        for name, mine in outputs.items()
    }
    records = []
    for name, mine in outputs.items():
        signals = text_metrics.measure([output for output in mine if output])
        scores = {}
        for reference in references:
            pairs = [
                pair for pair in zip(encoded[name], encoded[reference], strict=True) if all(pair)
            ]
            if name == reference or not pairs:
                continue
            means = np.mean(compare.f_measures(*zip(*pairs, strict=True)), axis=0)
            scores[reference] = dict(zip(rouge.NAMES, map(float, means), strict=True))
        records.append(
            {"benchmark": benchmark, "generator": name, "is_reference": name in references}
            | dataclasses.asdict(signals)
            | {"rouge": scores}
        )
    return records
