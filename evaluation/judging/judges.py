"""Judges: a prompt file and a parser of replies. To add one, add a file to prompts/ and a row here.

    judge = Judge.load("medical")          # or "medical=my_rubric.txt": with a custom prompt
    request = judge.request(question, first, second)
    judge.preference(answer)               # a parsers.Preference

Prompts have the placeholders {instruction}, {output_1}, {output_2} and {mark}; see
common.text.prompt_file.

Protection against texts that address the judge: the instruction and both outputs are enclosed in
lines that hold {mark}, a hash of the three texts which none of them contains. No text can therefore
close its block or open another, and the prompt states that everything between the marks is
material, not a request. This cannot make a model obey: it may overlook a mark that differs, and an
answer may still flatter or threaten it. Read the transcripts of judges that you do not know.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from common.sections import UsageError
from common.text.prompt_file import Prompt
from datagen.chat.config import ChatRequest
from datagen.chat.replies import ChatAnswer
from evaluation.judging import parsers
from evaluation.judging.parsers import Preference, ReplyParser

JUDGE_PROMPTS = Path(__file__).parents[1] / "prompts"
JUDGED_TEXTS = ("instruction", "output_1", "output_2")


@dataclasses.dataclass(frozen=True)
class JudgeSpec:
    """A row of JUDGES."""

    prompt: str  # file in prompts/, without .txt; "": to be given with the name
    parse: ReplyParser
    schema: Mapping[str, Any] | None = None  # JSON schema that replies must follow
    marked: bool = True  # False: texts are not enclosed in marks, as in published prompts
    typical_tokens: int = 250  # of a reply, in estimates


JUDGES: dict[str, JudgeSpec] = {
    "alpacare": JudgeSpec("alpacare", parsers.output_label, typical_tokens=5),
    # The paper's Claude judge, whose prompt suppresses ties.
    "alpacare_no_tie": JudgeSpec("alpacare_no_tie", parsers.output_label, typical_tokens=5),
    # Word for word: published=FILE, a file of AlpaCare's prompt/ with a line [user] added on top.
    "published": JudgeSpec("", parsers.output_label, marked=False, typical_tokens=5),
    "explained": JudgeSpec("explained", parsers.brackets),
    "medical": JudgeSpec("medical", parsers.brackets),
    "structured": JudgeSpec("structured", parsers.structured, parsers.VERDICT_SCHEMA),
}


@dataclasses.dataclass(frozen=True)
class Judge:
    """A judge with its prompt."""

    name: str
    prompt: Prompt
    spec: JudgeSpec

    @classmethod
    def load(cls, source: str) -> Self:
        """A judge by its name in JUDGES, or NAME=FILE: with another prompt, a .txt file or ours.

        Its name is NAME, or with FILE the file's.

        Raises:
          ValueError: no such judge, or a prompt with other placeholders or without marks.
          FileNotFoundError: the file does not exist.
        """
        name, equals, file = source.partition("=")
        if name not in JUDGES:
            raise UsageError(
                f"no judge {name!r}; choose from {', '.join(JUDGES)}, or NAME=FILE for one of them "
                "with a custom prompt"
            )
        spec = JUDGES[name]
        other_form = equals and spec.prompt and not file.endswith(".txt")  # alpacare=medical
        if other_form or not (file if equals else spec.prompt):
            raise UsageError(f"judge {source!r} lacks its prompt; write {name}=FILE.txt")
        prompt = Prompt.read(file or spec.prompt, JUDGE_PROMPTS)
        for text in JUDGED_TEXTS if spec.marked else ():
            block = rf"^<<< \{{mark\}}\n\{{{text}\}}\n\{{mark\}} >>>$"
            everywhere = re.findall(rf"\{{{text}\}}", prompt.system + prompt.user)
            if len(everywhere) != 1 or not re.search(block, prompt.user, re.MULTILINE):
                raise ValueError(
                    f"prompt {prompt.version}: {{{text}}} must occur once, in [user], alone on a "
                    "line between the lines '<<< {mark}' and '{mark} >>>'"
                )
        judge = cls(Path(file).stem if file else name, prompt, spec)
        judge.request("", "", "")  # raises where the prompt has other placeholders
        return judge

    @property
    def version(self) -> str:
        """Name and hash of the wording and the schema: a change of either changes it."""
        if not self.spec.schema:
            return self.prompt.version
        text = self.prompt.version + json.dumps(self.spec.schema)
        return f"{self.name}@{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def request(self, instruction: str, first: str, second: str, sample: int = 0) -> ChatRequest:
        """Asks which of two outputs is better; `sample` 1, 2, ... asks again."""
        texts = {"instruction": instruction, "output_1": first, "output_2": second}
        if self.spec.marked:
            texts["mark"] = mark(instruction, first, second)
        system, user = self.prompt.fill(**texts)
        return ChatRequest(system, user, self.version, sample, self.spec.schema)

    def preference(self, answer: ChatAnswer) -> Preference:
        """What a reply prefers; one that was truncated or refuses to judge is INVALID."""
        if answer.finish_reason in ("length", "refusal"):
            return Preference.INVALID
        return self.spec.parse(answer.text)


def mark(*texts: str) -> str:
    """16 hexadecimal digits that none of the texts contains, always the same for the same texts.

    >>> mark("Is it gout?", "Yes.", "No.")
    '41700b948a1f922e'
    """
    content = json.dumps(texts).encode()
    attempt = 0
    while True:
        digits = hashlib.sha256(b"%d " % attempt + content).hexdigest()[:16]
        if not any(digits in text for text in texts):
            return digits
        attempt += 1
