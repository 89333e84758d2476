"""Judges: a prompt file and how its replies read. A further one is a file in prompts/ and a row.

    judge = Judge.load("medical")          # or "medical=my_rubric.txt": with a prompt of my own
    request = judge.request(question, first, second)
    judge.verdict(answer)                  # "first", "second", "tie" or "invalid"

Prompts have the places {instruction}, {output_1}, {output_2} and {mark}; see common.prompt_file.

What is done against texts that speak to the judge: the instruction and both outputs stand between
lines that hold {mark}, a hash of the three texts which none of them contains. So no text can end
its block or begin another, whatever it holds, and each can be told from the prompt's own words; the
prompt says that all between the marks is material and no request. What this cannot do is make a
model obey: it may overlook a mark that differs, and an answer may still flatter or threaten it.
Read the transcripts of judges that you do not know.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from common.prompt_file import Prompt
from datagen.chat.config import ChatRequest
from datagen.chat.store import ChatAnswer
from evaluation.judging import parsers
from evaluation.judging.parsers import INVALID, Parser

PROMPTS = Path(__file__).parents[1] / "prompts"
TEXTS = ("instruction", "output_1", "output_2")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of JUDGES."""

    prompt: str  # file in prompts/, without .txt; "": to be given with the name
    parse: Parser
    schema: Mapping[str, Any] | None = None  # JSON schema that replies must follow
    marked: bool = True  # False: the texts stand in the open, as in prompts published so
    usual_tokens: int = 250  # of a reply, in estimates


JUDGES: dict[str, Kind] = {
    "alpacare": Kind("alpacare", parsers.output_label, usual_tokens=5),
    # The paper's Claude judge, whose prompt suppresses ties.
    "alpacare_no_tie": Kind("alpacare_no_tie", parsers.output_label, usual_tokens=5),
    # Word for word: published=FILE, a file of AlpaCare's prompt/ with a line [user] put before it.
    "published": Kind("", parsers.output_label, marked=False, usual_tokens=5),
    "explained": Kind("explained", parsers.brackets),
    "medical": Kind("medical", parsers.brackets),
    "structured": Kind("structured", parsers.structured, parsers.VERDICT_SCHEMA),
}


@dataclasses.dataclass(frozen=True)
class Judge:
    """A judge that is ready to be asked."""

    name: str
    prompt: Prompt
    kind: Kind

    @classmethod
    def load(cls, source: str) -> Self:
        """A judge by its name in JUDGES, or NAME=FILE: with the prompt of a .txt file of one's own.

        It is called by its name, with FILE by the file's.

        Raises:
          ValueError: no such judge, or a prompt with other places or without marks.
          FileNotFoundError: there is no such file.
        """
        name, equals, file = source.partition("=")
        if name not in JUDGES:
            raise ValueError(
                f"no judge {name!r}; choose from {', '.join(JUDGES)}, or NAME=FILE for one of them "
                "with a prompt of your own"
            )
        kind = JUDGES[name]
        if not (file if equals else kind.prompt) or (equals and not file.endswith(".txt")):
            raise ValueError(f"judge {source!r} lacks its prompt; write {name}=FILE.txt")
        prompt = Prompt.read(file or kind.prompt, PROMPTS)
        for text in TEXTS if kind.marked else ():
            block = rf"^<<< \{{mark\}}\n\{{{text}\}}\n\{{mark\}} >>>$"
            everywhere = re.findall(rf"\{{{text}\}}", prompt.system + prompt.user)
            if len(everywhere) != 1 or not re.search(block, prompt.user, re.MULTILINE):
                raise ValueError(
                    f"prompt {prompt.version}: {{{text}}} must stand once in [user], on a line of "
                    "its own between the lines '<<< {mark}' and '{mark} >>>'"
                )
        judge = cls(Path(file).stem if file else name, prompt, kind)
        judge.request("", "", "")  # raises where the prompt has other places
        return judge

    @property
    def version(self) -> str:
        """Name and hash of the wording and the schema: other replies, another version."""
        if not self.kind.schema:
            return self.prompt.version
        text = self.prompt.version + json.dumps(self.kind.schema)
        return f"{self.name}@{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def request(self, instruction: str, first: str, second: str, sample: int = 0) -> ChatRequest:
        """Asks which of two outputs is better; `sample` 1, 2, ... asks again."""
        texts = dict(zip(TEXTS, (instruction, first, second), strict=True))
        if self.kind.marked:
            texts["mark"] = mark(*texts.values())
        system, user = self.prompt.fill(**texts)
        return ChatRequest(system, user, self.version, sample, self.kind.schema)

    def verdict(self, answer: ChatAnswer) -> str:
        """first, second, tie, or invalid: so is a reply that was cut or refuses to judge."""
        if answer.finish_reason in ("length", "refusal"):
            return INVALID
        return self.kind.parse(answer.text)


def mark(*texts: str) -> str:
    """16 hexadecimal digits that are in none of the texts, always the same for the same texts.

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
