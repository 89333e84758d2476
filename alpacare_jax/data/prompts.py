"""Prompt templates: how an instruction and its input become the text before the answer."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Template:
    """A template of one model family.

    The text ends where the answer begins; a record without input takes `without_input`.
    """

    with_input: str
    without_input: str

    def prompt(self, instruction: str, input: str = "") -> str:
        # str.format does not read braces inside the values, so "{input}" in a record stays text.
        if input:
            return self.with_input.format(instruction=instruction, input=input)
        return self.without_input.format(instruction=instruction)


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
    """The template called `name`; a ValueError that lists the names when there is none."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown template {name!r}; choose from {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]
