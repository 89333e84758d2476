"""Prompt templates: the text before the answer, made from an instruction and its input."""

import dataclasses

from common.sections import UsageError


@dataclasses.dataclass(frozen=True)
class Template:
    """The template of one model family; it ends where the answer begins."""

    with_input: str
    without_input: str

    def prompt(self, instruction: str, input: str = "") -> str:
        """The prompt of one record; without an input, `without_input` applies."""
        # str.format does not parse braces inside values, so "{input}" in a record stays text.
        if input:
            return self.with_input.format(instruction=instruction, input=input)
        return self.without_input.format(instruction=instruction)

    def without_frame(self, prompt: str) -> str:
        """A prompt from its instruction on, for people; one of another template is unchanged."""
        for form in (self.with_input, self.without_input):
            before, after = form.partition("{instruction}")[0], form.rpartition("}")[2]
            if prompt.startswith(before) and prompt.endswith(after):
                return prompt.removeprefix(before).removesuffix(after)
        return prompt


TEMPLATES: dict[str, Template] = {
    # stanford_alpaca train.py PROMPT_DICT; AlpaCare trains and generates with the same text.
    "alpaca": Template(
        with_input=(
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
        ),
        without_input=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Response:"
        ),
    ),
}


def get(name: str) -> Template:
    """The template called `name`; UsageError lists the names if there is none."""
    if name not in TEMPLATES:
        raise UsageError(f"unknown template {name!r}; choose from {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]
