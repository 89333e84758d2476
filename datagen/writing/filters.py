"""Optional filters of single tasks; each is off unless its setting asks for it."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from common.records import Task

ALPACA_BLACKLIST = (
    "image, images, graph, graphs, picture, pictures, file, files, map, maps, draw, plot, go to, "
    "video, audio, music, flowchart, diagram"
)
"""What a language model alone cannot do (`generate_instruction.py` of stanford_alpaca)."""


@dataclasses.dataclass(frozen=True)
class FiltersConfig:
    """What a task must be like; 0 and "" switch a filter off."""

    min_words: int  # of the instruction; Alpaca: 4
    max_words: int  # of the instruction; Alpaca: 150
    min_input_words: int  # of an input that is not empty; the prompt asks for 50
    max_input_words: int  # the prompt asks for 200
    blacklist: str  # words and phrases that no instruction may hold, separated by commas
    domain_words: str  # file of word beginnings, one a line, one of which a task must hold
    language: str  # ISO 639-1 code, such as en, in which a task must be written

    def __post_init__(self):
        for words in ("words", "input_words"):
            least, most = getattr(self, f"min_{words}"), getattr(self, f"max_{words}")
            if least < 0 or most < 0 or (most and most < least):
                raise ValueError(f"filters: min_{words} {least} and max_{words} {most} let none in")
        if self.language and not re.fullmatch(r"[a-z]{2}", self.language):
            raise ValueError(f"filters.language is {self.language!r}, not a code such as en")


class Filters:
    """
    Raises:
      FileNotFoundError: there is no file of `domain_words`.
      ValueError: it is empty.
    """

    def __init__(self, config: FiltersConfig):
        self.config = config
        phrases = [phrase.strip() for phrase in config.blacklist.split(",") if phrase.strip()]
        self._blacklist = _pattern(phrases, whole=True)
        self._domain = _pattern(_lines(config.domain_words), whole=False)

    def reason(self, task: Task) -> str:
        """Why the task goes, or "": it stays."""
        config = self.config
        length, input_length = len(task.instruction.split()), len(task.input.split())
        if length < config.min_words:
            return "instruction too short"
        if config.max_words and length > config.max_words:
            return "instruction too long"
        if task.input and input_length < config.min_input_words:
            return "input too short"
        if config.max_input_words and input_length > config.max_input_words:
            return "input too long"
        if self._blacklist and self._blacklist.search(task.instruction):
            return "blacklisted"
        if self._domain and not self._domain.search(task.text):
            return "not of the domain"
        if config.language and _language(task.text) != config.language:
            return "another language"
        return ""


def _lines(path: str) -> list[str]:
    if not path:
        return []
    text = Path(path).read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if not line.startswith("#")]
    if not any(lines):
        raise ValueError(f"{path}: holds no word")
    return [line for line in lines if line]


def _pattern(phrases: Sequence[str], *, whole: bool) -> re.Pattern | None:
    if not phrases:
        return None
    end = r"(?!\w)" if whole else ""
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, phrases))}){end}", re.IGNORECASE)


def _language(text: str) -> str:
    """The most likely language; on fewer than some five words this is a guess."""
    import py3langid  # takes a second to load, and few ask for a language

    return py3langid.classify(text)[0]
