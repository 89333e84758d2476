"""Responses in OpenAI's form, whole or as the events of a stream."""

import dataclasses
import json
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from alpacare_jax.data.tokenizers import Tokenizer
from alpacare_jax.inference.text_stream import spelling
from alpacare_jax.serving.choice import AnswerChoice, Delta, ScoredToken


def encode(content: Any) -> bytes:
    """JSON without spaces, as UTF-8; what a client sent may have half a surrogate pair.

    Raises:
      ValueError: a number is NaN, as of a model with damaged weights; JSON has none.
    """
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def event(content: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(content) + b"\n\n"


DONE = b"data: [DONE]\n\n"
"""The last event of a stream that is complete."""


@dataclasses.dataclass(frozen=True)
class ResponseForm:
    """The form of one response.

    Args:
      chat: whether it is that of a chat.
      prompt_tokens: of all prompts, each counted once.
      logprobs: number of alternatives to each token; None: no log-probabilities.
      include_usage: at the end of a stream.
    """

    tokenizer: Tokenizer
    model: str
    chat: bool
    prompt_tokens: int
    logprobs: int | None
    include_usage: bool
    identity: str = dataclasses.field(default_factory=lambda: secrets.token_hex(12))
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def whole(self, parts: Sequence[tuple[AnswerChoice, str, list[ScoredToken]]]) -> dict[str, Any]:
        """The response that is not streamed, from each choice's text and tokens."""
        choices = []
        for choice, text, tokens in parts:
            content = (
                {"message": {"role": "assistant", "content": text, "refusal": None}}
                if self.chat
                else {"text": text}
            )
            choices.append(self._choice(choice, content, tokens, choice.finish_reason))
        return self._object(choices, stream=False) | self._usage([part[0] for part in parts])

    def first(self, choice: AnswerChoice) -> list[dict[str, Any]]:
        """The events before the first text of a choice."""
        if not self.chat:
            return []
        return [self._chunk(choice, {"role": "assistant", "content": ""}, [], None)]

    def chunk(self, choice: AnswerChoice, delta: Delta) -> list[dict[str, Any]]:
        """The events of what is new of a choice."""
        if not self.chat:
            if not (delta.text or delta.tokens or delta.finish_reason):
                return []
            return [self._chunk(choice, delta.text, delta.tokens, delta.finish_reason)]
        chunks = []
        if delta.text or delta.tokens:
            chunks.append(self._chunk(choice, {"content": delta.text}, delta.tokens, None))
        if delta.finish_reason:
            chunks.append(self._chunk(choice, {}, [], delta.finish_reason))
        return chunks

    def last(self, choices: Iterable[AnswerChoice]) -> list[dict[str, Any]]:
        """The event behind all choices, where the client asked for usage."""
        if not self.include_usage:
            return []
        return [self._object([], stream=True) | self._usage(choices)]

    def _usage(self, choices: Iterable[AnswerChoice]) -> dict[str, dict[str, int]]:
        counts = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": sum(choice.stream.used for choice in choices),
        }
        return {"usage": counts | {"total_tokens": sum(counts.values())}}

    def _chunk(
        self, choice: AnswerChoice, content: Any, tokens: list[ScoredToken], finish: str | None
    ):
        inner = {"delta": content} if self.chat else {"text": content}
        found = self._object([self._choice(choice, inner, tokens, finish)], stream=True)
        return found | {"usage": None} if self.include_usage else found

    def _object(self, choices: list[dict[str, Any]], *, stream: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if stream else "chat.completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.identity}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _choice(
        self,
        choice: AnswerChoice,
        content: dict[str, Any],
        tokens: list[ScoredToken],
        finish_reason: str | None,
    ) -> dict[str, Any]:
        scored = None
        if self.logprobs is not None and (tokens or not self.chat):
            scored = self._chat_scores(tokens) if self.chat else self._completion_scores(tokens)
        return {
            "index": choice.number,
            **content,
            "logprobs": scored,
            "finish_reason": finish_reason,
        }

    def _chat_scores(self, tokens: list[ScoredToken]) -> dict[str, Any]:
        def entry(token_id: int, logprob: float) -> dict[str, Any]:
            text, content = spelling(self.tokenizer, token_id)
            return {"token": text, "logprob": logprob, "bytes": list(content) or None}

        content = []
        for token in tokens:
            assert token.scores is not None  # those of an answer all have a token before them
            top = [entry(*found) for found in token.scores.top[: self.logprobs]]
            content.append(entry(token.token_id, token.scores.logprob) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _completion_scores(self, tokens: list[ScoredToken]) -> dict[str, Any]:
        def name(token_id: int) -> str:
            return spelling(self.tokenizer, token_id)[0]

        top: list[dict[str, float] | None] = []
        for token in tokens:
            if token.scores is None:
                top.append(None)
                continue
            found = {name(token.token_id): token.scores.logprob}
            for token_id, logprob in token.scores.top[: self.logprobs]:
                found.setdefault(name(token_id), logprob)  # the likelier of the same spelling
            top.append(found)
        return {
            "tokens": [name(token.token_id) for token in tokens],
            "token_logprobs": [t.scores.logprob if t.scores else None for t in tokens],
            "top_logprobs": top,
            "text_offset": [token.offset for token in tokens],
        }
