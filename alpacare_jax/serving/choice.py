"""One answer under way: its tokens as text, log-probabilities and an end, as they can be shown."""

import dataclasses
from collections.abc import Sequence

from alpacare_jax.data.tokenizers import Tokenizer
from alpacare_jax.inference.requests import Progress, TokenLogprobs
from alpacare_jax.inference.text_stream import TextStream, spelling


@dataclasses.dataclass(frozen=True)
class ScoredToken:
    """A token with its log-probabilities; None for the first of a text, which nothing predicts."""

    token_id: int
    offset: int  # of its first character in the text
    scores: TokenLogprobs | None


@dataclasses.dataclass(frozen=True)
class Delta:
    """What is new of an answer: the last one has a `finish_reason`, `stop` or `length`."""

    text: str
    tokens: list[ScoredToken]
    finish_reason: str | None


class AnswerChoice:
    """Follows the answer to one request.

    Args:
      number: its place among the choices of a response.
      prompt: ids of the prompt.
      echo: the prompt's text, which precedes the answer; None: it is left out.
      unsent: leading ids of the prompt that the client did not send, such as BOS.
      tell_eos: whether the end token, which has no text, is among the tokens.
      stops, strip: see `TextStream`.
    """

    def __init__(
        self,
        number: int,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        stops: Sequence[str] = (),
        strip: bool = False,
        echo: str | None = None,
        unsent: int = 0,
        tell_eos: bool = False,
    ):
        self.number, self.prompt, self._echo, self._unsent = number, prompt, echo, unsent
        self._tokenizer, self._tell_eos = tokenizer, tell_eos
        self.stream = TextStream(tokenizer, stops, strip=strip)
        self._waiting: list[ScoredToken] = []  # tokens whose text cannot be shown so far
        self._before = 0 if echo is None else len(echo)
        self.finish_reason: str | None = None

    def feed(self, progress: Progress) -> Delta:
        """What a step of the engine adds."""
        text, tokens = self._echo or "", []
        if self._echo is not None and progress.prompt_logprobs:
            tokens = self._prompt_tokens(progress.prompt_logprobs)
        self._echo = None
        for number, token_id in enumerate(progress.ids):
            if self.stream.stopped:
                break
            begin, part = _feed(self.stream, self._tokenizer, token_id)
            text += part
            if progress.logprobs:
                offset = self._before + begin
                self._waiting.append(ScoredToken(token_id, offset, progress.logprobs[number]))
        if progress.logprobs and progress.eos_id is not None and self._tell_eos:
            end = self._before + len(self.stream.text)
            self._waiting.append(ScoredToken(progress.eos_id, end, progress.logprobs[-1]))
        self.finish_reason = "stop" if self.stream.stopped else progress.finish_reason
        if self.finish_reason:
            text += self.stream.close()
        return Delta(text, [*tokens, *self._released()], self.finish_reason)

    def _released(self) -> list[ScoredToken]:
        """The tokens whose text has been shown; at the end all but those that a stop cut off."""
        if self.finish_reason and not self.stream.stopped:
            count = len(self._waiting)
        else:
            end = self._before + self.stream.shown
            count = sum(token.offset < end for token in self._waiting)
        released, self._waiting = self._waiting[:count], self._waiting[count:]
        return released

    def _prompt_tokens(self, scores: Sequence[TokenLogprobs | None]) -> list[ScoredToken]:
        stream, offsets = TextStream(self._tokenizer), []
        for token_id in self.prompt:
            offsets.append(_feed(stream, self._tokenizer, token_id)[0])
        stream.close()
        lead = len(stream.text) - self._before  # LLaMA's tokenizers put a space before a text
        return [
            ScoredToken(token_id, min(max(0, offset - lead), self._before), score)
            for token_id, offset, score in zip(self.prompt, offsets, scores, strict=True)
        ][self._unsent :]


def _feed(stream: TextStream, tokenizer: Tokenizer, token_id: int) -> tuple[int, str]:
    """Where a token begins in the text of `stream`, and what can be shown after it."""
    begin = len(stream.text)
    part = stream.feed([token_id])
    text, _ = spelling(tokenizer, token_id)
    if stream.text.endswith(text, begin):  # bytes that it does not complete may precede it
        begin = len(stream.text) - len(text)
    return begin, part
