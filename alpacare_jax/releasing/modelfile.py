"""The Modelfile with which Ollama makes a model of a GGUF file.

Ollama cannot run Jinja: its template is what the trained one writes around a question, and around
a system prompt where that has a place. Ollama puts BOS before it as the GGUF file says.
"""

import contextlib
import re
from collections.abc import Sequence

from alpacare_jax.data.chat_template import ChatTemplate
from alpacare_jax.data.prompts import Template
from common.text.conversations import Turn

IN_PLACE_OF_SYSTEM, IN_PLACE_OF_PROMPT = "\ufdd3", "\ufdd4"
"""Noncharacters of Unicode in place of a system prompt and a question."""

FORM = re.compile(
    r'FROM \./(?P<gguf>\S+)\nTEMPLATE """(?P<template>.*?)"""\n(?P<parameters>(PARAMETER .*\n)*)',
    re.DOTALL,
)

WITH_SYSTEM = re.compile(r"{{ if \.System }}(.*){{ else }}(.*){{ end }}", re.DOTALL)

BRACES = '{{ "{{" }}'
"""How a template of Go writes two braces."""

GREEDY = ("temperature 0", "repeat_penalty 1")
"""Ollama's own are 0.8 and 1.1; answers were evaluated greedily."""


def content(gguf: str, template: Template | ChatTemplate, bos: str, stops: Sequence[str]) -> str:
    """The Modelfile of the file called `gguf`; `bos` is what Ollama puts before a prompt itself."""

    def framed(system: Sequence[Turn]) -> str:
        text = "".join(template.pieces(system, IN_PLACE_OF_PROMPT, "", None)).removeprefix(bos)
        text = text.replace("{{", BRACES)
        return text.replace(IN_PLACE_OF_SYSTEM, "{{ .System }}").replace(
            IN_PLACE_OF_PROMPT, "{{ .Prompt }}"
        )

    text = framed(())
    with contextlib.suppress(ValueError):  # where the template has no place for a system prompt
        both = framed([Turn("system", IN_PLACE_OF_SYSTEM)]), text
        text = "{{ if .System }}" + "{{ else }}".join(both) + "{{ end }}"
    quoted = [f"stop {_quoted(stop)}" for stop in stops]
    parameters = "".join(f"PARAMETER {line}\n" for line in (*GREEDY, *quoted))
    return f'FROM ./{gguf}\nTEMPLATE """{text}"""\n{parameters}'


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


def read(text: str) -> tuple[str, str, list[str]]:
    """(file, prompt of a question IN_PLACE_OF_PROMPT, texts that end an answer) of a Modelfile.

    Raises:
      ValueError: it is not of the form that `content` writes.
    """
    if not (found := FORM.fullmatch(text)):
        raise ValueError("the Modelfile is damaged")
    template = found["template"]
    if both := WITH_SYSTEM.fullmatch(template):
        template = both[2]
    template = template.replace("{{ .Prompt }}", IN_PLACE_OF_PROMPT).replace(BRACES, "{{")
    lines = found["parameters"].splitlines()
    stops = [
        line.removeprefix('PARAMETER stop "').removesuffix('"').replace('\\"', '"')
        for line in lines
        if line.startswith("PARAMETER stop")
    ]
    return found["gguf"], template, stops
