"""The file of a model's answers: OUTPUT.partial while the run lasts, OUTPUT at its end.

{"settings": {"input": "9f2c...", "max_length": 1024, ...}}
{"index": 5, "record": {"instruction": ..., "output": ...}, "crc32c": "5d0a1f77"}
{"index": 7, "record": {"turn": 0, "output": ...}, "crc32c": ...}  before further questions
"""

import collections
import hashlib
import json
import sys
from typing import Any

import google_crc32c
from etils import epath

from common import jsonl, provenance

TOO_LONG = "too_long"
"""The `finish_reason` of a record whose prompt leaves no room for an answer."""

NO_ANSWER = {"output": "", "finish_reason": TOO_LONG, "num_tokens": 0}

HEADER = b'{"settings": '


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
        self.turns: dict[int, list[str]] = {}  # answers before further questions
        if self.path.exists():
            self._read(settings)
        if self.answers:
            print(f"resuming: {len(self.answers)} answers already generated", file=sys.stderr)
        header = json.dumps({"settings": settings})  # begins with HEADER
        turns = [
            (index, {"turn": turn, "output": text})
            for index, texts in self.turns.items()
            for turn, text in enumerate(texts)
        ]
        kept = map(self._line, [*turns, *self.answers.items()])
        self._lines = jsonl.LineFile(self.path, [header, *kept])

    @staticmethod
    def _line(item: tuple[int, dict[str, Any]]) -> str:
        text = json.dumps({"index": item[0], "record": item[1]}, ensure_ascii=False)
        return f'{text[:-1]}, "crc32c": "{google_crc32c.value(text.encode()):08x}"}}'

    def _read(self, settings: dict[str, Any]) -> None:
        first, *lines = self.path.read_bytes().split(b"\n")
        if not any(lines) and HEADER.startswith(first[: len(HEADER)]):
            return
        try:
            found = provenance.differences(json.loads(first)["settings"], settings)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(
                f"{self.path}:1 does not contain the settings of a run, so its answers cannot be "
                "used; delete it or choose another --output"
            ) from None
        if found:
            raise ValueError(
                f"{self.path} was made with other settings, input or weights "
                f"({provenance.as_text(found)}); delete it or choose another --output"
            )
        damaged = []
        for number, line in enumerate(lines, start=2):
            try:
                content = json.loads(line)
                item = content["index"], content["record"]
            except (ValueError, LookupError, TypeError, RecursionError):
                item = None
            if item and self._line(item).encode() == line and self._keep(*item):
                continue
            if number <= len(lines):  # the last is empty, or was cut short by a kill
                damaged.append(number)
        if damaged:
            print(
                f"{self.path}: {len(damaged):,} of {len(lines) - 1:,} answers are damaged, the "
                f"first in line {damaged[0]}; they are generated again",
                file=sys.stderr,
            )

    def _keep(self, index: int, record: dict[str, Any]) -> bool:
        """Keeps what a line holds, but for a turn without the one before it."""
        if "turn" in record:
            texts = self.turns.setdefault(index, [])
            if record["turn"] != len(texts):
                return False
            texts.append(record["output"])
        else:
            self.answers[index] = record
        return True

    def add(self, index: int, record: dict[str, Any]) -> None:
        """Appends the answer to record number `index` of the input."""
        self.answers[index] = record
        self._lines.add(self._line((index, record)))

    def add_turn(self, index: int, text: str) -> None:
        """Appends an answer of a conversation that goes on, behind its earlier ones."""
        texts = self.turns.setdefault(index, [])
        self._lines.add(self._line((index, {"turn": len(texts), "output": text})))
        texts.append(text)

    def finish(self, run: dict[str, Any]) -> None:
        """Writes the complete output, in input order, and its `run.json`; removes the partial file.

        A kill in between leaves the partial file, from which the next run writes both.
        """
        self._lines.close()
        records = [self.answers[i] for i in sorted(self.answers)]
        is_array = self.output.suffix == ".json"
        text = provenance.json_text(records) if is_array else "".join(map(jsonl.line, records))
        reasons = collections.Counter(record["finish_reason"] for record in records)
        empty = sum(not record["output"] for record in records) - reasons[TOO_LONG]
        end = {
            "finish_reasons": reasons,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "end": provenance.now(),
        }
        provenance.write_json(provenance.run_json(self.output), run | end)
        provenance.write_text(self.output, text)
        self.path.unlink()
        print(
            f"{self.output}: {len(records):,} answers; {reasons['length']:,} of them were "
            f"truncated at the length limit, {empty:,} are empty because the model ended them at "
            f"once, {reasons[TOO_LONG]:,} because the prompt is too long",
            file=sys.stderr,
        )
