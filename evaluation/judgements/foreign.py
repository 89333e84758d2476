"""Judgements that no workdir of evaluation.judge holds: of other tools, or written by hand.

    sources = load(["judged/luna", "annotations.json", "mt_bench=gpt-4_pair.jsonl"])

A file is recognized by the fields of its first record: alpaca_eval's annotations, FastChat's pairs,
or the form of docs/file_formats.md, into which the other two are converted. NAME=FILE names the
benchmark.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from common import data_file, jsonl, records
from common.jsonl import Record
from common.messages import format_counts, log
from common.sections import UsageError
from evaluation.inputs.benchmarks import FILE_ENDINGS, Item, split_source
from evaluation.inputs.outputs import ModelOutput
from evaluation.judgements import other_tools
from evaluation.judgements.verdicts import JUDGEMENTS_FILE, ORDERS, Verdict

PROMPT = "not given"
"""The prompt version of a judgement that names none."""


class Judgement(NamedTuple):
    """One verdict from elsewhere."""

    id: str
    benchmark: str
    generator: str
    reference: str
    judge: str
    prompt_version: str
    order: str  # one of ORDERS, or "": unknown
    verdict: Verdict
    score: float | None  # of a graded verdict: 0 to 1, the model's share of the win
    raw: str


@dataclasses.dataclass(frozen=True)
class ForeignJudgements:
    """A file of judgements, with the texts that it holds."""

    path: Path
    judgements: list[Judgement]
    items: list[Item]
    outputs: list[ModelOutput]


Converter = Callable[[Record], Iterable[Record]]
"""Makes of a record the judgements that it stands for, as docs/file_formats.md describes them."""


def load(sources: Sequence[str], baseline: str = "") -> list[Path | ForeignJudgements]:
    """Each source as the path of a workdir, or as what its file holds.

    Args:
      sources: workdirs, files, NAME=FILE with the name of the benchmark, or folders with an
        annotations.json.
      baseline: the reference in files of pairs in which no model takes part everywhere.

    Raises:
      FileNotFoundError: no such file.
      ValueError: records are malformed or contradict each other: the first is named, all counted.
    """
    numbers: dict[tuple[str, str], str] = {}
    found: list[Path | ForeignJudgements] = []
    for source in sources:
        name, file = split_source(source)
        path = Path(file or source)
        if path.is_dir() and not (path / JUDGEMENTS_FILE).exists():
            annotations = path / other_tools.ANNOTATIONS_FILE
            path = annotations if annotations.exists() else path
        elif path.name == JUDGEMENTS_FILE and (path.parent / "items.jsonl").exists():
            path = path.parent
        is_file = path.name.lower().removesuffix(".gz").endswith(FILE_ENDINGS)
        if path.is_dir() or not (path.is_file() or is_file):
            if file and name:
                raise UsageError(f"{source}: a workdir names its benchmarks itself; omit {name}=")
            found.append(path)
        else:
            found.append(read(path, name if file else "", numbers, baseline))
    return found


def read(
    path: Path, benchmark: str, numbers: dict[tuple[str, str], str], baseline: str = ""
) -> ForeignJudgements:
    """The judgements of a file; see `load`.

    Args:
      benchmark: used in place of the records' own; "" to keep that.
      numbers: (benchmark, question) -> id of items without one; those that are new are added.
    """
    found = list(data_file.read(path))
    if not found:
        raise ValueError(f"{path}: contains no judgements")
    form, convert = _form(path, [record for _, record in found], baseline)
    judgements: list[Judgement] = []
    items: dict[tuple[str, str], Item] = {}
    outputs: dict[tuple[str, str, str], ModelOutput] = {}
    faults, unused = [], 0
    for location, record in found:
        try:
            converted = list(convert(record))
            for one in converted:
                if benchmark:
                    one = one | {"benchmark": benchmark}
                judged, item, answers = _judgement(one, numbers)
                judgements.append(judged)
                if item and items.setdefault((item.benchmark, item.id), item) != item:
                    raise ValueError(f"id {item.id!r} has another text in an earlier record")
                for answer in answers:
                    key = answer.benchmark, answer.generator, answer.id
                    if outputs.setdefault(key, answer) != answer:
                        raise ValueError(
                            f"{answer.generator} has another answer to id {answer.id!r} in an "
                            "earlier record"
                        )
            unused += not converted
        except ValueError as error:
            faults.append(f"{location}: {error}")
    if faults:
        raise ValueError(
            f"{faults[0]} ({len(faults):,} of {len(found):,} records of {form} cannot be used); "
            "correct or remove them"
        )
    if unused:
        log(f"{path}: {unused:,} of {len(found):,} pairs are not with {baseline}, and not used")
    counts = Counter(judged.verdict.value for judged in judgements)
    log(f"{path}: {form}: {len(judgements):,} judgements: {format_counts(counts)}")
    return ForeignJudgements(path, judgements, list(items.values()), list(outputs.values()))


def _form(path: Path, found: Sequence[Record], baseline: str) -> tuple[str, Converter]:
    """What the records are, by the first of them, and how they are converted."""
    fields = found[0].keys()
    if fields >= other_tools.ANNOTATION_FIELDS:
        return "alpaca_eval's annotations", other_tools.annotations(path)
    if fields >= other_tools.PAIR_FIELDS and fields & other_tools.WINNERS:
        return "FastChat's pairs", other_tools.pairs(path, found, baseline)
    if fields >= {"generator", "reference"}:
        return "judgements", lambda record: [record]
    if fields >= other_tools.GRADE_FIELDS:
        raise ValueError(
            f"{path}: FastChat's grades of single answers, which compare nothing; judge pairs: "
            "gen_judgment.py --mode pairwise-baseline"
        )
    raise ValueError(
        f"{path}: not judgements of a known form; the first record has "
        f"{', '.join(fields) or 'no fields':.200}; docs/file_formats.md lists the forms"
    )


def _judgement(
    record: Record, numbers: dict[tuple[str, str], str]
) -> tuple[Judgement, Item | None, list[ModelOutput]]:
    """A record with its texts, if it has any; ValueError without the place."""
    names = {field: _text(record, field) for field in ("benchmark", "generator", "reference")}
    names["judge"] = _text(record, "judge")
    for field, name in names.items():
        if not name:
            raise ValueError(f"field {field!r} is missing")
    if names["generator"] == names["reference"]:
        raise ValueError(f"{names['generator']} is compared with itself")
    question = {field: _text(record, field) for field in ("instruction", "input")}
    text = records.join_text(**question)
    id_ = jsonl.identity("", record)
    if not id_:
        if not text.strip():
            raise ValueError("fields 'id' and 'instruction' are missing; give one of them")
        known = sum(key[0] == names["benchmark"] for key in numbers)
        id_ = numbers.setdefault((names["benchmark"], text), str(known))
    order = _text(record, "order")
    if order not in ("", *ORDERS):
        raise ValueError(f"order is {order!r:.40}; it must be one of {', '.join(ORDERS)}, or none")
    verdict, score = _verdict(record)
    item = Item(
        id=id_,
        benchmark=names["benchmark"],
        **question,
        topic=_text(record, "topic"),
        difficulty=records.difficulty(record.get("difficulty")),
    )
    outputs = [
        ModelOutput(names["benchmark"], id_, names[side], _text(record, field))
        for side, field in (("generator", "output"), ("reference", "reference_output"))
        if record.get(field) is not None
    ]
    judged = Judgement(
        id=id_,
        **names,
        prompt_version=_text(record, "prompt_version") or PROMPT,
        order=order,
        verdict=verdict,
        score=score,
        raw=_text(record, "raw"),
    )
    return judged, item if text.strip() else None, outputs


def _verdict(record: Record) -> tuple[Verdict, float | None]:
    """(verdict, score) of a record with either of them; no score where it adds nothing."""
    given, score = record.get("verdict"), record.get("score")
    if score is None or score == "":
        if given not in tuple(Verdict):
            raise ValueError(
                f"verdict is {given!r:.40}; it must be one of {', '.join(Verdict)}, or `score` a "
                "number from 0 to 1"
            )
        return Verdict(given), None
    value = jsonl.number(score)
    if value is None or not 0 <= value <= 1:
        raise ValueError(f"score is {score!r:.40}; it must be a number from 0 to 1")
    verdict = Verdict.TIE
    if value != 0.5:
        verdict = Verdict.MODEL if value > 0.5 else Verdict.REFERENCE
    if given and given != verdict:
        raise ValueError(f"verdict is {given!r:.40}, but the score {value:g} means {verdict}")
    return verdict, None if value in (0, 0.5, 1) else value


def _text(record: Record, field: str) -> str:
    try:
        return jsonl.text("", record, field)
    except ValueError as error:
        raise ValueError(str(error).removeprefix(": ")) from None
