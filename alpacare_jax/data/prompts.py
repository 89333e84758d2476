"""Prompt templates: the text before the answer, made from an instruction and its input."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from common.records import join_text
from common.sections import UsageError

LOSSES = ("template", "responses", "last", "all")
"""The tokens that carry loss: as the template's authors trained, the answers, the last of them, or
every token."""


@dataclasses.dataclass(frozen=True)
class Template:
    """The template of one model family; its prompt ends where the answer begins."""

    without_input: str
    with_input: str = ""  # "": instruction and input are one text, in place of the instruction
    lead: str = ""  # what training puts between prompt and answer
    end: str = ""  # what ends an answer; the tokenizer's EOS follows unless it has a control token
    tokens: tuple[str, ...] = ()  # control tokens that the tokenizer must have
    bos: bool = True  # whether BOS comes first, where the tokenizer adds one
    loss: str = "responses"  # one of LOSSES: what its authors trained on
    stop: tuple[str, ...] = ()  # texts before which its authors cut an answer
    stated: str = ""  # an instruction that the template itself states, and does not repeat
    native: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Flags of `generate` with which its authors sampled; others stay at their defaults."""

    def prompt(self, instruction: str, input: str = "") -> str:
        """The prompt of one record; without an input, `without_input` applies."""
        # str.format does not parse braces inside values, so "{input}" in a record stays text.
        if input and self.with_input:
            return self.with_input.format(instruction=instruction, input=input)
        if input:
            instruction = join_text("" if instruction == self.stated else instruction, input)
        return self.without_input.format(instruction=instruction)

    def response(self, instruction: str, input: str, output: str) -> str:
        """What follows the prompt in training."""
        del instruction, input
        return f"{self.lead}{output}{self.end}"

    def without_frame(self, prompt: str) -> str:
        """A prompt from its instruction on, for people; one of another template is unchanged."""
        for form in filter(None, (self.with_input, self.without_input)):
            before, after = form.partition("{instruction}")[0], form.rpartition("}")[2]
            if prompt.startswith(before) and prompt.endswith(after):
                return prompt.removeprefix(before).removesuffix(after)
        return prompt

    @property
    def jinja(self) -> str:
        """The template of one question as a `chat_template`, for programs that read releases."""
        before, _, after = self.without_input.partition("{instruction}")
        message = json.dumps("this model was trained on one question and its answer")
        return (
            f"{{% if messages | length != 1 %}}{{{{ raise_exception({message}) }}}}{{% endif %}}"
            f"{{{{ {'bos_token + ' if self.bos else ''}{json.dumps(before)} "
            f"+ messages[0]['content'] + {json.dumps(after)} }}}}"
        )


_PREAMBLE = "Below is an instruction that describes a task"
_WITH_INPUT = f"{_PREAMBLE}, paired with an input that provides further context."
_REQUEST = "Write a response that appropriately completes the request.\n\n"
_SECTIONS = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
_DOCTOR = (
    "If you are a doctor, please answer the medical questions based on the patient's description."
)
_DIALOGUE = "The conversation between human and AI assistant.\n"

ALPACA = Template(
    with_input=f"{_WITH_INPUT} {_REQUEST}{_SECTIONS}",
    without_input=f"{_PREAMBLE}. {_REQUEST}### Instruction:\n{{instruction}}\n\n### Response:",
)
"""stanford_alpaca train.py PROMPT_DICT; AlpaCare trains and generates with the same text."""

TEMPLATES: dict[str, Template] = {
    "alpaca": ALPACA,
    # ChatDoctor chat.py; it was trained with Alpaca's template.
    "chatdoctor": Template(
        f"{_DOCTOR} \n\nChatDoctor: I am ChatDoctor, what medical questions do you have?"
        "\n\nPatient: {instruction}\n\nChatDoctor: ",
        stated=_DOCTOR,
        stop=("Patient: ",),
        native={
            "temperature": 0.5,
            "top_k": 50,
            "repetition_penalty": 1.1,
            "max_new_tokens": 200,
            "max_length": 2048,
        },
    ),
    # medAlpaca: the section Input is always there.
    "medalpaca": Template(
        with_input=f"{_WITH_INPUT} {_REQUEST}{_SECTIONS}\n",
        without_input=f"{_WITH_INPUT} {_REQUEST}{_SECTIONS}\n".replace("{input}", ""),
        bos=False,
        loss="all",
        native={"max_new_tokens": 128, "max_length": 2048},
    ),
    # PMC-LLaMA 13B, README: Alpaca's without the space after "context.".
    "pmc-llama": dataclasses.replace(
        ALPACA,
        with_input=f"{_WITH_INPUT}{_REQUEST}{_SECTIONS}",
        native={"max_new_tokens": 1000, "max_length": 2048},
    ),
    # A base model, such as PMC-LLaMA 7B: the record's text and nothing else.
    "plain": Template("{instruction}", native={"temperature": 1.0, "top_k": 50, "max_length": 200}),
    # Baize's demo, behind the opening of its training data: the demo's own is long, and under GPL.
    "baize": Template(
        _DIALOGUE + "[|Human|]Hello!\n[|AI|]Hi!\n[|Human|]{instruction}\n[|AI|]",
        stop=("[|Human|]", "[|AI|]"),
        native={"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 512, "max_length": 2048},
    ),
    # Baize's training data.
    "baize-dialogue": Template(
        _DIALOGUE + "[|Human|] {instruction}\n[|AI|]",
        lead=" ",
        end="\n[|Human|] ",
        loss="all",
        stop=("[|Human|]", "[|AI|]"),
    ),
    # LLaMA 3's instruction models; native sampling is that of their generation_config.json.
    "llama3": Template(
        "<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
}

CHAT = "chat"
"""The name of the template that comes with the tokenizer; see `chat_template`."""


def check_name(name: str) -> None:
    """Raises UsageError, which lists the names, if no template is called `name`."""
    if name not in (names := [*sorted(TEMPLATES), CHAT]):
        raise UsageError(f"unknown template {name!r}; choose from {', '.join(names)}")
