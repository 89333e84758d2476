"""Drops near-duplicates: records too similar to another one by ROUGE-L.

    python -m datagen.dedup --input=tasks.jsonl --output=kept.jsonl \\
        [--against=seeds.jsonl,test.jsonl] [--threshold=0.7] [--mode=greedy|drop_both] \\
        [--tokenizer=rouge|unicode] [--fields=instruction|instruction_input]

Records near to one of an --against file (seeds, or test sets for decontamination) are dropped. Of
the others, `greedy` drops what is near to a record kept before it, as self-instruct and Alpaca do;
`drop_both` drops both records of every near pair, as AlpaCare's filter does.

OUTPUT holds the kept records, OUTPUT.dropped.jsonl the others, both in the order of the input. A
dropped record has a field `nearest`: file, id and text of its nearest neighbour, and the score.
"""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from common import cli, jsonl, provenance
from common.jsonl import Record
from common.messages import StatusLine, log, suggestion
from common.records import join_text, read_records
from common.sections import UsageError
from common.text.near_duplicates import NearDuplicates
from common.text.rouge import TOKENIZERS

MODES = ("greedy", "drop_both")
COMPARED_FIELDS = ("instruction", "instruction_input")


class Nearest(NamedTuple):
    """The neighbour for which a text is dropped."""

    outside: bool  # one of the --against texts, not of the input
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
    """For each text the neighbour for which it is dropped; None if it is kept.

    A text near to one of `outside` is dropped for the nearest of those, even if another of `texts`
    is nearer. Among equally near neighbours the first counts.

    Raises:
      ValueError: the threshold is not between 0 and 1, or mode or tokenizer is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; {suggestion(mode, MODES)}")
    references = NearDuplicates(threshold, tokenizer)
    references.learn(outside)
    for position, text in enumerate(outside):
        references.add(text, position)
    pool = NearDuplicates(threshold, tokenizer)
    pool.learn(texts)
    nearest: list[Nearest | None] = [None] * len(texts)
    status = StatusLine()
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
        if status.due():
            status.show(f"{position + 1:,}/{len(texts):,} texts compared")
    status.close()
    return nearest


def _drop_both(
    pool: NearDuplicates, text: str, position: int, nearest: list[Nearest | None]
) -> None:
    """Records every near pair of this text and an earlier one, for both of its texts."""
    for match in pool.matches(text):
        for one, other in ((position, match.id), (match.id, position)):
            best = nearest[one]
            if best is None or (not best.outside and match.score > best.score):
                nearest[one] = Nearest(False, other, match.score)
    pool.add(text, position)


def compared_text(record: Record, fields: str) -> str:
    """The text that is compared; `fields` is one of COMPARED_FIELDS."""
    given = record["input"] if fields == "instruction_input" else ""
    return join_text(record["instruction"], given)


def dropped_path(output: Path) -> Path:
    """The file of the dropped records."""
    return output.with_name(output.name + ".dropped.jsonl")


def require_separate_files(output: Path, sources: Sequence[Path]) -> None:
    """Raises UsageError if the output does not end in .jsonl or would overwrite a source."""
    if output.suffix != ".jsonl":
        raise UsageError(f"--output {output} must end in .jsonl")
    written = {path.resolve() for path in (output, dropped_path(output))}
    for source in sources:
        if source.resolve() in written:
            raise UsageError(f"{source} would be overwritten; choose another --output")


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
    """Filters `input_path`; the arguments are the flags'."""
    require_separate_files(output, [input_path, *against])
    if input_path.resolve() in {path.resolve() for path in against}:
        raise UsageError(
            f"--against contains the input {input_path}; every record would be dropped"
        )
    records = read_records(input_path)
    outside = [(path, record) for path in against for record in read_records(path)]
    settings = {  # files by content: they may have moved
        "input": provenance.sha256(input_path),
        "against": [provenance.sha256(path) for path in against],
        "threshold": threshold,
        "mode": mode,
        "tokenizer": tokenizer,
        "fields": fields,
    }
    if provenance.is_finished(output, settings):
        log(f"{output} is complete; nothing to do")
        return
    files = {"input": str(input_path), "against": [str(path) for path in against]}
    description = provenance.describe(config=settings, files=files)
    texts = [compared_text(record, fields) for record in records]
    nearest = nearest_neighbours(
        texts,
        [compared_text(record, fields) for _, record in outside],
        threshold=threshold,
        mode=mode,
        tokenizer=tokenizer,
    )
    kept, dropped = [], []
    for record, neighbour in zip(records, nearest, strict=True):
        if neighbour is None:
            kept.append(record)
            continue
        inside = (input_path, records[neighbour.position])
        file, other = outside[neighbour.position] if neighbour.outside else inside
        found = {
            "file": str(file),
            "id": other["id"],
            "text": compared_text(other, fields),
            "score": neighbour.score,
        }
        dropped.append(record | {"nearest": found})
    dropped_by = collections.Counter(record["nearest"]["file"] for record in dropped)
    counts = {
        "read": len(records),
        "kept": len(kept),
        "near_duplicates": dropped_by[str(input_path)],
        "against": {str(path): dropped_by[str(path)] for path in against},
        "without_tokens": sum(not TOKENIZERS[tokenizer](text) for text in texts),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    jsonl.write(dropped_path(output), dropped)
    # Last: once it exists, all three files do.
    jsonl.write_output(output, kept, description | {"counts": counts})
    log(summary(counts, tokenizer))


def summary(counts: Record, tokenizer: str) -> str:
    """The counts of a run as lines for a person."""
    lines = [
        f"{counts['read']:,} records read, {counts['kept']:,} kept",
        f"{counts['near_duplicates']:,} dropped as near-duplicates of other records",
        *(f"{number:,} dropped against {path}" for path, number in counts["against"].items()),
    ]
    if counts["without_tokens"]:
        remedy = "" if tokenizer == "unicode" else "; use --tokenizer=unicode for other scripts"
        lines.append(f"{counts['without_tokens']:,} texts without tokens, never dropped{remedy}")
    return "\n".join(lines)


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("input", None, "Records: .jsonl or .json, optionally .gz.")
    flags.DEFINE_string("output", None, "Kept records: .jsonl.")
    flags.DEFINE_list("against", [], "Files of records that kept records must not be near.")
    flags.DEFINE_float("threshold", 0.7, "Texts with ROUGE-L F above it are near-duplicates.")
    flags.DEFINE_enum("mode", "greedy", MODES, "Whether to drop the later of a near pair, or both.")
    flags.DEFINE_enum(
        "tokenizer", "rouge", TOKENIZERS, "rouge: a to z and digits; unicode: any script."
    )
    flags.DEFINE_enum(
        "fields",
        "instruction",
        COMPARED_FIELDS,
        "Text to compare; sets that share one instruction require instruction_input.",
    )
    flags.mark_flags_as_required(["input", "output"])
    flags.register_validator(
        "threshold", lambda value: 0 < value < 1, message="must be between 0 and 1"
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
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
    cli.run(main, output="output")
