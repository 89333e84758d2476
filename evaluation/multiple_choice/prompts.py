"""What a model is asked, and how a generated letter is read.

The prompts are those of lm-evaluation-harness's tasks (medqa_4options, medmcqa, pubmedqa, headqa
and mmlu), so that accuracies can be compared. `letters` and `texts` are for any other questions.
"""

import dataclasses
import re
from collections.abc import Sequence

from evaluation.multiple_choice.forms import FORMS, LETTERS
from evaluation.multiple_choice.questions import Question

SEPARATOR = "\n\n"
"""Between examples, and between them and the question."""

ASK_FOR_LETTER = "\n\nAnswer with the letter of the right option only."


@dataclasses.dataclass(frozen=True)
class ChoicePrompt:
    """A row of PROMPTS."""

    text: str  # with {question}, and {options} or {context} if it has them
    letters: bool  # whether options are listed, and compared by their letters; else by their texts
    description: str = ""  # once, before examples and question, with {subject}


PROMPTS = {
    "letters": ChoicePrompt("{context}Question: {question}\n{options}Answer:", letters=True),
    "texts": ChoicePrompt("{context}Question: {question}\nAnswer:", letters=False),
    "medqa": ChoicePrompt("Question: {question}\n{options}Answer:", letters=True),
    "medmcqa": ChoicePrompt("Question: {question}\nChoices:\n{options}Answer:", letters=True),
    "pubmedqa": ChoicePrompt("Abstract: {context}Question: {question}\nAnswer:", letters=False),
    "headqa": ChoicePrompt("Question: {question}\nAnswer:", letters=False),
    "mmlu": ChoicePrompt(
        "{question}\n{options}Answer:",
        letters=True,
        description="The following are multiple choice questions (with answers) about {subject}.",
    ),
}


class Prompter:
    """Makes prompts.

    Args:
      name: key of PROMPTS; "": that of each question's form.
      examples: questions from which the first `shots` of a question's subject precede it.
    """

    def __init__(self, name: str = "", examples: Sequence[Question] = (), shots: int = 0):
        self._name, self._shots = name, shots
        self._examples: dict[str, list[Question]] = {}
        for example in examples:
            self._examples.setdefault(example.subject, []).append(example)

    def of(self, question: Question) -> ChoicePrompt:
        """The row of PROMPTS for a question."""
        return PROMPTS[self._name or FORMS[question.form].prompt]

    def prompt(self, question: Question) -> str:
        """The prompt, which an option follows after a space.

        Raises:
          ValueError: there are not enough examples of the question's subject.
        """
        row = self.of(question)
        examples = self._examples.get(question.subject, [])[: self._shots]
        if len(examples) < self._shots:
            raise ValueError(
                f"--shots_from has {len(examples)} questions of subject {question.subject!r} of "
                f"{self._shots} needed (question {question.id!r}); lower --shots"
            )
        parts = [row.description.format(subject=question.subject.replace("_", " "))]
        parts += [f"{fill(row, e)} {self.continuations(e)[e.answer]}" for e in examples]
        return SEPARATOR.join(filter(None, [*parts, fill(row, question)]))

    def continuations(self, question: Question) -> Sequence[str]:
        """What is compared for each option: its letter, or its text."""
        if self.of(question).letters:
            return LETTERS[: len(question.options)]
        return question.options


def fill(row: ChoicePrompt, question: Question) -> str:
    """A prompt filled with a question, without examples."""
    return row.text.format(
        question=question.text,
        options="".join(map("{}. {}\n".format, LETTERS, question.options)),
        context=question.context and f"{question.context}\n",
    )


_LETTER = re.compile(
    r"(?:the |my )?(?:(?:correct|right|best|final) )?(?:answer|option|choice)?(?: is)?(?: option)?"
    r"[\s:*_(\[]*(?P<letter>[A-Z])[*_]*(?:[.):\],][*_]*(?=\s|$)|\s*$)(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
_OTHER = re.compile(r"(?<![\w'’])([B-Z])(?![\w'’])")  # not A, which is a word, too


def read_letter(reply: str, options: Sequence[str]) -> int | None:
    """The position of the option that a reply names; None where it is not one, or may be another.

    A reply is a letter, alone or before its text, and "The answer is" may precede it.

    >>> options = ["Rest", "Fever", "A cold"]
    >>> [read_letter(text, options) for text in ("B", "(B)", "**B.** Fever", "The answer is: B.")]
    [1, 1, 1, 1]
    >>> [read_letter(text, options) for text in ("A cold", "B or C", "B. Not C", "D", "I think B")]
    [None, None, None, None, None]
    """
    found = _LETTER.match(reply.strip().lstrip("*_([ "))
    if not found or not found["letter"].isupper():
        return None
    at, rest = LETTERS.index(found["letter"]), found["rest"].strip().strip("*_ .")
    if at >= len(options):
        return None
    others = {LETTERS.index(letter) for letter in _OTHER.findall(rest)} - {at}
    is_text = rest.casefold() == options[at].strip().strip(".").casefold()
    return None if not is_text and any(other < len(options) for other in others) else at
