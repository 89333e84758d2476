"""The file of a model's answers, which grows beside its place and takes it when it is whole."""

import hashlib
import json
import sys
from typing import Any

from etils.epath import Path

from common import jsonl, provenance


class Partial:
    """Answers so far, one line each, in OUTPUT.partial; its first line names the run.

    A file of another run is an error, not a surprise: its answers would be mixed up with ours.
    Where that run came to no answer, there is nothing to lose and its file is replaced.
    """

    def __init__(self, output: Path, fingerprint: str):
        self.path = output.with_name(output.name + ".partial")
        self.answers: dict[int, dict[str, Any]] = {}
        if self.path.exists():
            self._read(fingerprint)
        whole = [json.dumps({"fingerprint": fingerprint}), *map(self._line, self.answers.items())]
        self._lines = jsonl.LineFile(self.path, whole)

    @staticmethod
    def _line(item: tuple[int, dict[str, Any]]) -> str:
        return json.dumps({"index": item[0], "record": item[1]}, ensure_ascii=False)

    def _read(self, fingerprint: str) -> None:
        lines = self.path.read_bytes().split(b"\n")
        if not any(lines[1:]) and lines[0].startswith(b'{"fingerprint"'):
            return
        for number, line in enumerate(lines):
            try:
                content = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError):
                break  # the end, or cut short by a kill: this answer is made again
            if number == 0 and content.get("fingerprint") != fingerprint:
                raise ValueError(
                    f"{self.path} was made with other flags, input or weights; delete it or choose "
                    "another --output"
                )
            if number:
                self.answers[content["index"]] = content["record"]

    def add(self, index: int, record: dict[str, Any]) -> None:
        self.answers[index] = record
        self._lines.add(self._line((index, record)))

    def finish(self, output: Path) -> None:
        """Writes the whole output, in input order, and removes the partial file."""
        self._lines.close()
        records = [self.answers[i] for i in sorted(self.answers)]
        write = provenance.write_json if output.suffix == ".json" else jsonl.write
        write(output, records)
        self.path.unlink()
        cut = sum(record["finish_reason"] == "length" for record in records)
        print(
            f"{output}: {len(records)} answers, {cut} of them cut at the length limit",
            file=sys.stderr,
        )


def go_on(output: Path, settings: dict[str, Any]) -> Partial:
    """What there is of a run of these settings; it is told."""
    output.parent.mkdir(parents=True, exist_ok=True)
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    partial = Partial(output, fingerprint)
    if partial.answers:
        print(f"{len(partial.answers)} answers are there already", file=sys.stderr)
    return partial
