"""The model that is served: its name, its tokenizer and template, and the prompts they make."""

import dataclasses
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

from alpacare_jax.data.chat_template import ChatTemplate
from alpacare_jax.data.encoding import encode_prompt
from alpacare_jax.data.prompts import Template
from alpacare_jax.data.tokenizers import Tokenizer
from alpacare_jax.inference.loading import ModelSource
from alpacare_jax.serving.errors import ApiError, wrong_value
from common import paths
from common.records import Example
from common.text.conversations import Turn


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt in ids, and its text as the client knows it."""

    ids: list[int]
    text: str = ""
    unsent: int = 0  # leading ids that the client did not send: BOS


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """What the protocol has to know of a model."""

    name: str
    template_name: str
    tokenizer: Tokenizer
    template: Template | ChatTemplate
    vocab_size: int
    max_length: int  # tokens of prompt and answer together
    created: int  # seconds since 1970, of /v1/models

    @classmethod
    def of(cls, source: ModelSource, name: str) -> Self:
        """What is served of a folder, under `name`; "": the folder's own."""
        return cls(
            name or paths.absolute(source.trained).name,
            source.template_name,
            source.tokenizer,
            source.template,
            source.config.vocab_size,
            source.max_length,
            int(time.time()),
        )

    def check_name(self, name: str) -> None:
        """Raises ApiError if this is not the model of that name."""
        if name != self.name:
            raise ApiError(
                404,
                f"the model {name[:80]!r} is not served here; the model is {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def describe(self) -> dict[str, Any]:
        """The entry of /v1/models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "alpacare-jax",
            "max_model_len": self.max_length,
            "template": self.template_name,
        }

    def chat_prompt(self, history: Sequence[Turn], question: str) -> EncodedPrompt:
        """The prompt of a conversation, as the model was trained."""
        self._require_short("messages", "".join(turn.text for turn in history) + question)
        example = Example("", question, "", "", tuple(history))
        try:
            return EncodedPrompt(encode_prompt(example, self.tokenizer, self.template))
        except ValueError as error:
            text = str(error)
            if isinstance(self.template, ChatTemplate):  # clients learn no path of this machine
                text = text.replace(f" of {self.template.directory}", "")
            problem = f"cannot be put into the model's template: {text}"
            raise wrong_value("messages", problem) from None

    def completion_prompt(self, given: str | Sequence[int]) -> EncodedPrompt:
        """A prompt as it is: a text, behind BOS where the tokenizer adds one, or ids."""
        if not isinstance(given, str):
            if not given:
                raise wrong_value("prompt", "is an empty list of ids; send at least one")
            return EncodedPrompt(list(given), self.tokenizer.decode(given))
        self._require_short("prompt", given)
        bos = self.tokenizer.bos_id if self.tokenizer.adds_bos else None
        start = [] if bos is None else [bos]
        try:
            ids = start + self.tokenizer.encode(given)
        except ValueError as error:
            raise wrong_value("prompt", f"cannot be encoded: {error}") from None
        if not ids:
            raise wrong_value("prompt", "is empty; send a text")
        return EncodedPrompt(ids, given, len(start))

    def shown(self, prompt: EncodedPrompt) -> str:
        """A prompt as the model reads it, control tokens included."""
        content = b"".join(map(self.tokenizer.token_bytes, prompt.ids))
        return content.decode("utf-8", "replace")

    def room(self, prompt: EncodedPrompt, max_tokens: int | None, field: str) -> int:
        """The maximum tokens of an answer. Raises ApiError if prompt and answer are too long."""
        room = self.max_length - len(prompt.ids)
        if room < (1 if max_tokens is None else min(max_tokens, 1)):
            raise self._too_long(field, f"{len(prompt.ids):,}")
        if max_tokens is not None and max_tokens > room:
            otherwise = ", or leave it out" if field == "messages" else ""  # else it is 16 again
            raise wrong_value(
                "max_tokens",
                f"is {max_tokens:,}, and the prompt has {len(prompt.ids):,} tokens: together more "
                f"than the model's {self.max_length:,}; send at most {room:,}{otherwise}",
                "context_length_exceeded",
            )
        return room if max_tokens is None else max_tokens

    @cached_property
    def _longest_token(self) -> int:
        pieces = (self.tokenizer.token_bytes(i) for i in self.tokenizer.result_ids)
        return max(map(len, pieces))

    def _require_short(self, field: str, text: str) -> None:
        """Raises ApiError for a text that must be too long, before it is tokenised."""
        least = len(text) // self._longest_token
        if least > self.max_length:
            raise self._too_long(field, f"at least {least:,}")

    def _too_long(self, field: str, count: str) -> ApiError:
        return wrong_value(
            field,
            f"has {count} tokens, which leaves no room for an answer within the model's "
            f"{self.max_length:,}; shorten it",
            "context_length_exceeded",
        )
