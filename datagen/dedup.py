"""Drops near-duplicates: records whose text has a ROUGE-L F above a threshold with another's.

    python -m datagen.dedup --input=tasks.jsonl --output=kept.jsonl \\
        [--against=seeds.jsonl,test.jsonl] [--threshold=0.7] [--mode=greedy|drop_both] \\
        [--tokenizer=rouge|unicode] [--fields=instruction|instruction_input]

A record goes if it is near to one of an --against file (seeds, or test sets: decontamination). Of
the others, `greedy` drops what is near to a record kept before it, as self-instruct and Alpaca do;
`drop_both` drops both of every near pair, as AlpaCare's filter does.

OUTPUT holds the records that stay, OUTPUT.dropped.jsonl the others, both in the order of the input;
a dropped one says in `nearest` what it was too near to: file, id, text and score.
"""

import collections
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from common import cli, jsonl, provenance
from common.jsonl import Record
from common.records import read_records
from common.rouge import TOKENIZERS
from datagen.near_duplicates import NearDuplicates

MODES = ("greedy", "drop_both")
FIELDS = {"instruction": ("instruction",), "instruction_input": ("instruction", "input")}
"""--fields -> the fields that are compared, as one text."""

SECONDS_BETWEEN_PROGRESS = 5.0


class Nearest(NamedTuple):
    """The text for which another one goes."""

    outside: bool  # of the --against texts, not of the input
    position: int
    score: float


def nearest_neighbours(
    texts: Sequence[str],
    outside: Sequence[str] = (),
    *,
    threshold: float = 0.7,
    mode: str = "greedy",
    tokenizer: str = "rouge",
) -> list[Nearest | None]:
    """For each text, for which other it goes; None: it stays.

    A text near to one of `outside` goes for the nearest of them, even if another of `texts` is
    nearer. Among equally near ones the first counts.

    Raises:
      ValueError: the threshold does not lie between 0 and 1; no such mode or tokenizer.
    """
    if mode not in MODES:
        raise ValueError(f"no mode {mode!r}; choose one of {', '.join(MODES)}")
    references = NearDuplicates(threshold, tokenizer)
    references.learn(outside)
    for position, text in enumerate(outside):
        references.add(text, position)
    pool = NearDuplicates(threshold, tokenizer)
    pool.learn(texts)
    nearest: list[Nearest | None] = [None] * len(texts)
    shown = time.monotonic()
    for position, text in enumerate(texts):
        if outside and (match := references.nearest(text)):
            nearest[position] = Nearest(True, match.id, match.score)
        if mode == "drop_both":
            _drop_both(pool, text, position, nearest)
        elif not nearest[position]:
            if match := pool.nearest(text):
                nearest[position] = Nearest(False, match.id, match.score)
            else:
                pool.add(text, position)
        if time.monotonic() - shown > SECONDS_BETWEEN_PROGRESS:
            shown = time.monotonic()
            print(f"{position + 1:,}/{len(texts):,} texts compared", file=sys.stderr)
    return nearest


def _drop_both(
    pool: NearDuplicates, text: str, position: int, nearest: list[Nearest | None]
) -> None:
    """Notes every pair of this text and one before it, on both sides."""
    for match in pool.matches(text):
        for one, other in ((position, match.id), (match.id, position)):
            best = nearest[one]
            if best is None or (not best.outside and match.score > best.score):
                nearest[one] = Nearest(False, other, match.score)
    pool.add(text, position)


def compared_text(record: Record, fields: str) -> str:
    return "\n\n".join(filter(None, (record[field] for field in FIELDS[fields])))


def dropped_path(output: Path) -> Path:
    return output.with_name(output.name + ".dropped.jsonl")


def require_own_files(output: Path, sources: Sequence[Path]) -> None:
    """Raises ValueError where what is written would replace what is read, or is no .jsonl."""
    if output.suffix != ".jsonl":
        raise ValueError(f"--output {output} must end in .jsonl")
    written = {path.resolve() for path in (output, dropped_path(output))}
    for source in sources:
        if source.resolve() in written:
            raise ValueError(f"{source} would be overwritten; choose another --output")


def split(
    records: Sequence[Record],
    nearest: Sequence[Nearest | None],
    places: tuple[Sequence[tuple[Path, Record]], Sequence[tuple[Path, Record]]],
    fields: str,
) -> tuple[list[Record], list[Record]]:
    """(kept, dropped), the dropped ones with their `nearest`.

    Args:
      places: file and record of every input text and of every outside one.
    """
    kept, dropped = [], []
    for record, neighbour in zip(records, nearest, strict=True):
        if neighbour is None:
            kept.append(record)
            continue
        file, other = places[neighbour.outside][neighbour.position]
        found = {
            "file": str(file),
            "id": other["id"],
            "text": compared_text(other, fields),
            "score": neighbour.score,
        }
        dropped.append(record | {"nearest": found})
    return kept, dropped


def run(
    *,
    input_path: Path,
    output: Path,
    against: Sequence[Path],
    threshold: float,
    mode: str,
    tokenizer: str,
    fields: str,
) -> None:
    """Filters `input_path`; see the flags for the arguments."""
    require_own_files(output, [input_path, *against])
    if input_path.resolve() in {path.resolve() for path in against}:
        raise ValueError(f"--against names the input {input_path}, which would drop every record")
    records = read_records(input_path)
    outside = [(path, record) for path in against for record in read_records(path)]
    settings = {
        "input": {str(input_path): provenance.sha256(input_path)},
        "against": {str(path): provenance.sha256(path) for path in against},
        "threshold": threshold,
        "mode": mode,
        "tokenizer": tokenizer,
        "fields": fields,
    }
    if provenance.is_finished(output, settings):
        print(f"{output} is finished", file=sys.stderr)
        return
    description = provenance.describe(config=settings)
    texts = [compared_text(record, fields) for record in records]
    nearest = nearest_neighbours(
        texts,
        [compared_text(record, fields) for _, record in outside],
        threshold=threshold,
        mode=mode,
        tokenizer=tokenizer,
    )
    places = [(input_path, record) for record in records], outside
    kept, dropped = split(records, nearest, places, fields)
    files = collections.Counter(record["nearest"]["file"] for record in dropped)
    counts = {
        "read": len(records),
        "kept": len(kept),
        "near_duplicates": files[str(input_path)],
        "against": {str(path): files[str(path)] for path in against},
        "without_tokens": sum(not TOKENIZERS[tokenizer](text) for text in texts),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    jsonl.write(dropped_path(output), dropped)
    ended = {"counts": counts, "end": provenance.now()}
    provenance.write_json(provenance.run_json(output), description | ended)
    jsonl.write(output, kept)  # last: where it is, all three are
    print(report(counts, tokenizer), file=sys.stderr)


def report(counts: Record, tokenizer: str) -> str:
    """The counts as lines for a person."""
    lines = [
        f"{counts['read']:,} records read, {counts['kept']:,} kept",
        f"{counts['near_duplicates']:,} dropped as near-duplicates of other records",
        *(f"{number:,} dropped against {path}" for path, number in counts["against"].items()),
    ]
    if counts["without_tokens"]:
        remedy = "" if tokenizer == "unicode" else "; --tokenizer=unicode reads every script"
        lines.append(
            f"{counts['without_tokens']:,} texts without any token, near to nothing{remedy}"
        )
    return "\n".join(lines)


def define_flags() -> None:
    flags.DEFINE_string("input", None, "Records: .jsonl or .json, .gz or not.")
    flags.DEFINE_string("output", None, "Records that stay: .jsonl.")
    flags.DEFINE_list("against", [], "Files of records that the input must not be near to.")
    flags.DEFINE_float("threshold", 0.7, "Texts with F above it are near-duplicates.")
    flags.DEFINE_enum("mode", "greedy", MODES, "Drop the later of a near pair, or both.")
    flags.DEFINE_enum(
        "tokenizer", "rouge", TOKENIZERS, "rouge: a to z and digits only; unicode: any script."
    )
    flags.DEFINE_enum(
        "fields",
        "instruction",
        FIELDS,
        "What is compared; sets with one instruction for all need instruction_input.",
    )
    flags.mark_flags_as_required(["input", "output"])
    flags.register_validator(
        "threshold", lambda value: 0 < value < 1, message="must lie between 0 and 1"
    )


def main(argv: Sequence[str]) -> None:
    del argv
    FLAGS = flags.FLAGS
    run(
        input_path=Path(FLAGS.input),
        output=Path(FLAGS.output),
        against=[Path(path) for path in FLAGS.against],
        threshold=FLAGS.threshold,
        mode=FLAGS.mode,
        tokenizer=FLAGS.tokenizer,
        fields=FLAGS.fields,
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)
