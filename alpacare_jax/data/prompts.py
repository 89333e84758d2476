"""Prompt templates: the text before the answer, made from an instruction and its input."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from common.records import join_text
from common.sections import UsageError
from common.text.conversations import Turn

LOSSES = ("template", "responses", "last", "all")
"""The tokens that carry loss: as the template's authors trained, the answers, the last of them, or
every token."""


@dataclasses.dataclass(frozen=True)
class Template:
    """The template of one model family; its prompt ends where the answer begins."""

    without_input: str
    with_input: str = ""  # "": instruction and input are one text, in place of the instruction
    further: str = ""  # how a further question follows an answer; "": the template is of one
    system: str = ""  # what comes first where there is a system prompt; "": it has no place
    lead: str = ""  # what training puts between prompt and answer
    end: str = ""  # what ends an answer; the tokenizer's EOS follows unless it has a control token
    between: str = ""  # what is before a further question, in place of `end` and EOS; "": these
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

    def pieces(
        self, history: Sequence[Turn], instruction: str, input: str, output: str | None
    ) -> list[str]:
        """The texts of question, answer, question ... of a conversation; see `ChatTemplate.pieces`.

        Raises:
          ValueError: the template has no place for a system prompt, or for a further question.
        """
        system = history[0].text if history and history[0].role == "system" else ""
        if system and not self.system:
            raise ValueError(f"the template has no place for a system prompt; {_with('system')}")
        turns = [turn.text for turn in history if turn.role != "system"]
        if turns and not self.further:
            raise ValueError(f"the template is of one question and its answer; {_with('further')}")
        first, *others = [*turns[::2], instruction]
        questions = [self.prompt(first, "" if others else input)]
        if others:
            others[-1] = join_text(others[-1], input)
        questions += [self.further.format(instruction=other) for other in others]
        questions[0] = self.system.format(system=system) * bool(system) + questions[0]
        answers = [f"{self.lead}{answer}{self.between or self.end}" for answer in turns[1::2]]
        answers += [] if output is None else [f"{self.lead}{output}{self.end}"]
        pieces = itertools.zip_longest(questions, answers)
        return [piece for pair in pieces for piece in pair if piece is not None]

    marked = False
    """Whether what carries loss is marked in the template itself."""

    def without_frame(self, prompt: str) -> str:
        """A prompt from its instruction on, for people; one of another template is unchanged."""
        for form in filter(None, (self.with_input, self.without_input)):
            before, after = form.partition("{instruction}")[0], form.rpartition("}")[2]
            if prompt.startswith(before) and prompt.endswith(after):
                return prompt.removeprefix(before).removesuffix(after)
        return prompt

    def jinja(self, opening: str = "") -> str:
        """The template of one question as a `chat_template`, for programs that read releases.

        `opening` is Jinja's expression of what precedes it, such as BOS.
        """
        before, _, after = self.without_input.partition("{instruction}")
        message = json.dumps("this model was trained on one question and its answer")
        return (
            f"{{% if messages | length != 1 %}}{{{{ raise_exception({message}) }}}}{{% endif %}}"
            f"{{{{ {f'{opening} + ' if opening else ''}{json.dumps(before)} "
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

_LLAMA3 = (
    "<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)

ALPACA = Template(
    with_input=f"{_WITH_INPUT} {_REQUEST}{_SECTIONS}",
    without_input=f"{_PREAMBLE}. {_REQUEST}### Instruction:\n{{instruction}}\n\n### Response:",
    further="\n\n### Instruction:\n{instruction}\n\n### Response:",
)
"""stanford_alpaca train.py PROMPT_DICT; AlpaCare trains and generates with the same text. Theirs is
one question; the form of a further one is ours."""

TEMPLATES: dict[str, Template] = {
    "alpaca": ALPACA,
    # ChatDoctor chat.py; it was trained with Alpaca's template.
    "chatdoctor": Template(
        f"{_DOCTOR} \n\nChatDoctor: I am ChatDoctor, what medical questions do you have?"
        "\n\nPatient: {instruction}\n\nChatDoctor: ",
        further="\n\nPatient: {instruction}\n\nChatDoctor: ",
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
        further="",
        with_input=f"{_WITH_INPUT}{_REQUEST}{_SECTIONS}",
        native={"max_new_tokens": 1000, "max_length": 2048},
    ),
    # A base model, such as PMC-LLaMA 7B: the record's text and nothing else.
    "plain": Template("{instruction}", native={"temperature": 1.0, "top_k": 50, "max_length": 200}),
    # Baize's demo, behind the opening of its training data: the demo's own is long, and under GPL.
    "baize": Template(
        _DIALOGUE + "[|Human|]Hello!\n[|AI|]Hi!\n[|Human|]{instruction}\n[|AI|]",
        further="\n[|Human|]{instruction}\n[|AI|]",
        stop=("[|Human|]", "[|AI|]"),
        native={"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 512, "max_length": 2048},
    ),
    # Baize's training data, one text with EOS behind it.
    "baize-dialogue": Template(
        _DIALOGUE + "[|Human|] {instruction}\n[|AI|]",
        further=" {instruction}\n[|AI|]",
        lead=" ",
        between="\n[|Human|]",
        end="\n[|Human|] ",
        loss="all",
        stop=("[|Human|]", "[|AI|]"),
    ),
    # LLaMA 3's instruction models; native sampling is that of their generation_config.json.
    "llama3": Template(
        _LLAMA3,
        further=_LLAMA3,
        system="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        end="<|eot_id|>",
        tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
}

CHAT = "chat"
"""The name of the template that comes with the tokenizer; see `chat_template`."""


def _with(field: str) -> str:
    """Which templates have what `field` is for."""
    names = [name for name, template in TEMPLATES.items() if getattr(template, field)]
    return f"choose template {CHAT}, the tokenizer's own, or {', '.join(names)}"


def check_name(name: str) -> None:
    """Raises UsageError, which lists the names, if no template is called `name`."""
    if name not in (names := [*sorted(TEMPLATES), CHAT]):
        raise UsageError(f"unknown template {name!r}; choose from {', '.join(names)}")
