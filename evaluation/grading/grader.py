"""A grader: a prompt and a strict reader of its replies, one verdict for each criterion.

As with judges (evaluation.judging.judges), texts stand between lines that hold a mark which none of
them contains. A prompt of your own may leave {mark} out, as HealthBench's published one does.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from common.text.conversations import Turn
from common.text.prompt_file import Prompt
from datagen.chat.config import ChatRequest
from datagen.chat.replies import ChatAnswer
from evaluation.judging import judges
from evaluation.judging.parsers import unique_keys

GRADER_PROMPTS = Path(__file__).parents[1] / "grader_prompts"

GRADE_TOKENS = 120
"""Of a reply, in estimates."""

SAMPLES_OF_REPEAT = 1000
"""Numbers of requests that each repeat has for asking again, so that more repeats or reasks later
change no earlier request."""

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n```", re.DOTALL | re.IGNORECASE)


class Grade(StrEnum):
    """Whether an answer meets a criterion."""

    MET = "met"
    NOT_MET = "not met"
    INVALID = "invalid"  # the reply states neither


def parse_grade(reply: str) -> tuple[Grade, str]:
    """(grade, explanation) of a reply: one JSON object, alone or as the only code block.

    >>> print(*parse_grade('{"explanation": "It names the dose.", "criteria_met": true}'), sep=", ")
    met, It names the dose.
    >>> print(parse_grade('```json\\n{"criteria_met": false}\\n```')[0])
    not met
    >>> print(*(parse_grade(text)[0] for text in ('{"criteria_met": "true"}', "true", "")))
    invalid invalid invalid
    >>> print(parse_grade('{"criteria_met": true, "criteria_met": false}')[0])
    invalid
    """
    text = reply.strip()
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    try:
        content = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        return Grade.INVALID, ""
    met = content.get("criteria_met") if isinstance(content, dict) else None
    if not isinstance(met, bool):
        return Grade.INVALID, ""
    explanation = content.get("explanation", "")
    return (Grade.MET if met else Grade.NOT_MET), explanation if isinstance(
        explanation, str
    ) else ""


@dataclasses.dataclass(frozen=True)
class Grading:
    """One criterion to be graded on one answer; a repeat is the same question once more."""

    prompt: Prompt
    turns: Sequence[Turn]
    answer: str
    criterion: str
    repeat: int = 0

    @property
    def judge_name(self) -> str:
        """The grader's name, for messages."""
        return f"grader {self.prompt.version.partition('@')[0]}"

    def request(self, sample: int = 0) -> ChatRequest:
        """The request to the grader; `sample` 1, 2, ... asks again."""
        spoken = [*self.turns, Turn("assistant", self.answer)]
        conversation = "\n\n".join(f"{turn.role}: {turn.text}" for turn in spoken)
        texts = {"conversation": conversation, "criterion": self.criterion}
        if "{mark}" in self.prompt.user:
            texts["mark"] = judges.mark(conversation, self.criterion)
        system, user = self.prompt.fill(**texts)
        number = self.repeat * SAMPLES_OF_REPEAT + sample
        return ChatRequest(system, user, self.prompt.version, number)

    def verdict(self, answer: ChatAnswer) -> Grade:
        """The grade in a reply; one that was truncated or refuses is INVALID."""
        if answer.finish_reason in ("length", "refusal"):
            return Grade.INVALID
        return parse_grade(answer.text)[0]


def load_prompt(name: str) -> Prompt:
    """A grader's prompt: `rubric`, or the path of a .txt file.

    Raises:
      FileNotFoundError, ValueError: there is none, or it has other placeholders.
    """
    prompt = Prompt.read(name, GRADER_PROMPTS)
    Grading(prompt, (), "", "").request()  # raises where the prompt has other placeholders
    return prompt
