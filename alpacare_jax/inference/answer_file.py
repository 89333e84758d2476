"""The file of a model's answers: OUTPUT.partial while the run lasts, OUTPUT at its end."""

import hashlib
import json
import sys
from typing import Any

from etils import epath

from common import jsonl, provenance


class PartialOutput:
    """The answers so far, one per line, in OUTPUT.partial; its first line identifies the run.

    A partial file of another run raises ValueError, because its answers would be mixed with these.
    If that run had not produced any answer, nothing is lost and its file is replaced.

    Args:
      settings: what the answers depend on; a run with the same settings is resumed.
    """

    def __init__(self, output: epath.Path, settings: dict[str, Any]):
        output.parent.mkdir(parents=True, exist_ok=True)
        self.output, self.path = output, output.with_name(output.name + ".partial")
        self.answers: dict[int, dict[str, Any]] = {}
        fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        if self.path.exists():
            self._read(fingerprint)
        if self.answers:
            print(f"resuming: {len(self.answers)} answers already generated", file=sys.stderr)
        header = json.dumps({"fingerprint": fingerprint})
        self._lines = jsonl.LineFile(self.path, [header, *map(self._line, self.answers.items())])

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
                break  # the end, or a line cut short by a kill: its answer is generated again
            if number == 0 and content.get("fingerprint") != fingerprint:
                raise ValueError(
                    f"{self.path} was made with different flags, input or weights; delete it or "
                    "choose another --output"
                )
            if number:
                self.answers[content["index"]] = content["record"]

    def add(self, index: int, record: dict[str, Any]) -> None:
        """Appends the answer to record number `index` of the input."""
        self.answers[index] = record
        self._lines.add(self._line((index, record)))

    def finish(self) -> None:
        """Writes the complete output, in input order, and removes the partial file."""
        self._lines.close()
        records = [self.answers[i] for i in sorted(self.answers)]
        write = provenance.write_json if self.output.suffix == ".json" else jsonl.write
        write(self.output, records)
        self.path.unlink()
        cut = sum(record["finish_reason"] == "length" for record in records)
        print(
            f"{self.output}: {len(records)} answers, {cut} of them truncated at the length limit",
            file=sys.stderr,
        )
