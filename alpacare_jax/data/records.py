"""Examples as training and generation read them: instruction, input and output."""

import dataclasses
from pathlib import Path

from common import jsonl


@dataclasses.dataclass(frozen=True)
class Example:
    """One instruction with its answer; `output` is "" where only a prompt is needed."""

    id: str
    instruction: str
    input: str
    output: str


def read_examples(path: str | Path, *, answered: bool = True) -> list[Example]:
    """Reads Examples, or with `answered=False` Tasks, from JSONL or a JSON array, maybe gzipped.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a record is malformed (file, line and field are named) or there is none at all.
    """
    examples = []
    for where, record in jsonl.read(path):
        for field in ("instruction", "output") if answered else ("instruction",):
            if field not in record:
                raise ValueError(f"{where}: field {field!r} is missing")
        texts = {k: jsonl.text(where, record, k) for k in ("instruction", "input", "output")}
        if not (texts["instruction"].strip() or texts["input"].strip()):
            raise ValueError(f"{where}: field 'instruction' is empty")
        given = record.get("id")
        name = str(len(examples) if given is None else given)
        examples.append(Example(id=name, **texts))
    if not examples:
        raise ValueError(f"{path}: holds no record")
    return examples
