"""The Jinja `chat_template` of a tokenizer's folder, rendered as transformers renders it."""

import datetime
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from etils import epath
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alpacare_jax.data import prompts
from alpacare_jax.data.prompts import Template
from alpacare_jax.data.tokenizers import Tokenizer
from common import provenance
from common.records import join_text
from common.sections import UsageError
from common.text.conversations import Turn

Message = Mapping[str, str]
"""{"role": system, user or assistant, "content": text}."""

ANSWER, END = "\ufdd1", "\ufdd2"
"""Noncharacters of Unicode, around what a template marks as generated."""


OTHERWISE = "writes an answer's beginning otherwise than it asks for it"


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, with which templates mark the answers of the assistant."""

    tags = frozenset(["generation"])  # pyright: ignore[reportAssignmentType]

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{ANSWER}{caller()}{END}"


def _environment() -> ImmutableSandboxedEnvironment:
    """The sandbox, with the names that transformers gives to templates."""

    def fail(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **settings)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = fail
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


class ChatTemplate:
    """The template of a tokenizer's folder; it has the interface of `prompts.Template`."""

    bos, loss, between = False, "responses", ""  # the template writes BOS and ends itself
    tokens = stop = ()
    native: Mapping[str, Any] = {}

    def __init__(self, directory: str | PurePath, tokenizer: Tokenizer):
        """Raises UsageError if the folder has no chat template, ValueError if it is damaged."""
        self.directory = directory
        text = source(epath.Path(directory))
        self.marked = bool(re.search(r"{%[-+]?\s*generation\b", text))
        try:
            self._template = _environment().from_string(text)
        except jinja2.TemplateError as error:
            raise ValueError(f"{directory}: the chat template is damaged ({error})") from None
        self._special = {
            f"{kind}_token": "" if token_id is None else tokenizer.piece(token_id)
            for kind, token_id in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))
        }

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The text of a conversation; with `prompt`, up to where the assistant answers.

        What the template marks as generated is between ANSWER and END.
        """
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=prompt, **self._special
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ValueError(
                f"the chat template of {self.directory} rejects a conversation: {error}"
            ) from None

    def prompt(self, instruction: str, input: str = "") -> str:
        """As `Template.prompt`; instruction and input are one message."""
        return _unmarked(self.render(_question(instruction, input), prompt=True))

    def pieces(
        self, history: Sequence[Turn], instruction: str, input: str, output: str | None
    ) -> list[str]:
        """The texts of question, answer, question ... of a conversation, each in its frame.

        With `output` its last answer, and what a template that marks answers writes behind it.

        Raises:
          ValueError: the template rejects the conversation, or cannot be trained on.
        """
        messages = [{"role": role, "content": text} for role, text in history]
        messages.append({"role": "user", "content": join_text(instruction, input)})
        prompt = self.render(messages, prompt=True)
        if history and history[0].role == "system" and history[0].text.strip() not in prompt:
            raise self._unusable("has no place for a system prompt")
        if output is not None:
            messages.append({"role": "assistant", "content": output})
        whole = prompt if output is None else self.render(messages)
        if self.marked:
            pieces = re.split(f"[{ANSWER}{END}]", whole)
            if output is not None and "".join(pieces[:-2]) != _unmarked(prompt):
                raise self._unusable(OTHERWISE)
            return pieces
        borders = [0]
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                question = self.render(messages[:number], prompt=True)
                answered = self.render(messages[: number + 1])
                if not whole.startswith(answered):  # some write the last newline only at the end
                    answered = answered.rstrip()
                if not (whole.startswith(answered) and answered.startswith(question)):
                    raise self._unusable(OTHERWISE)
                borders += [len(question), len(answered)]
        pieces = [whole[start:end] for start, end in itertools.pairwise(borders)]
        return pieces if output is not None else [*pieces, whole[borders[-1] :]]

    def _unusable(self, reason: str) -> ValueError:
        return ValueError(
            f"the chat template of {self.directory} {reason}, so that it cannot be trained on; "
            "name another template"
        )

    def without_frame(self, prompt: str) -> str:
        """The prompt as it is."""
        return prompt


def _question(instruction: str, input: str) -> list[Message]:
    return [{"role": "user", "content": join_text(instruction, input)}]


def _unmarked(text: str) -> str:
    return text.replace(ANSWER, "").replace(END, "")


def source(directory: PurePath) -> str:
    """The text of a folder's template; a file of its own precedes the tokenizer's settings."""
    directory = epath.Path(directory)
    if (path := directory / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = directory / name
        found = provenance.read_json(path).get("chat_template") if path.is_file() else None
        if isinstance(found, list):  # of {"name": ..., "template": ...}
            found = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
            found = found.get("default")
        if isinstance(found, str):
            return found
    raise UsageError(
        f"{directory} has no chat template (chat_template.jinja, or chat_template in "
        f"tokenizer_config.json); choose from {', '.join(sorted(prompts.TEMPLATES))}"
    )


def load(name: str, directory: str | PurePath, tokenizer: Tokenizer) -> Template | ChatTemplate:
    """The template called `name`; that called `chat` is the one of the tokenizer's folder.

    Raises:
      UsageError: there is none of this name, or the tokenizer lacks a token of it.
      ValueError: the chat template is damaged.
    """
    prompts.check_name(name)
    if name == prompts.CHAT:
        return ChatTemplate(directory, tokenizer)
    template = prompts.TEMPLATES[name]
    for token in template.tokens:
        if token not in tokenizer.control_tokens:
            raise UsageError(
                f"template {name} has the control token {token}, which the tokenizer of "
                f"{directory} lacks; choose another template"
            )
    return template
