"""Optional filters of single tasks; each is off by default."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from common.records import Task


@dataclasses.dataclass(frozen=True)
class FiltersConfig:
    """Requirements of a task; 0 and "" switch a filter off."""

    min_words: int  # of the instruction; Alpaca: 4
    max_words: int  # of the instruction; Alpaca: 150
    min_input_words: int  # of a non-empty input; the prompt asks for 50
    max_input_words: int  # of the input; the prompt asks for 200
    blacklist: str  # comma-separated words that no instruction may contain: "image, plot, go to"
    domain_words: str  # file of word prefixes, one per line, one of which a task must contain
    language: str  # ISO 639-1 code, such as en, of the language a task must be written in

    def __post_init__(self):
        for words in ("words", "input_words"):
            lower, upper = getattr(self, f"min_{words}"), getattr(self, f"max_{words}")
            if lower < 0 or upper < 0 or (upper and upper < lower):
                raise ValueError(f"filters: min_{words} {lower} and max_{words} {upper} admit none")
        if self.language and not re.fullmatch(r"[a-z]{2}", self.language):
            raise ValueError(f"filters.language is {self.language!r}; use a code such as en")


class Filters:
    """The filters that a config switches on.

    Raises:
      FileNotFoundError, ValueError: the file `domain_words` does not exist, or contains no words.
    """

    def __init__(self, config: FiltersConfig):
        self.config = config
        phrases = [phrase.strip() for phrase in config.blacklist.split(",") if phrase.strip()]
        self._blacklist = _pattern(phrases, whole=True)
        self._domain = _pattern(_lines(config.domain_words), whole=False)

    def reason(self, task: Task) -> str:
        """Why the task is rejected; "" if it is kept."""
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
        raise ValueError(f"{path}: contains no words")
    return [line for line in lines if line]


def _pattern(phrases: Sequence[str], *, whole: bool) -> re.Pattern | None:
    if not phrases:
        return None
    end = r"(?!\w)" if whole else ""
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, phrases))}){end}", re.IGNORECASE)


def _language(text: str) -> str:
    """The most likely language; a guess for texts of fewer than about five words."""
    import py3langid  # takes a second to load, and most runs do not need it

    return py3langid.classify(text)[0]
