"""What a model answered, from the JSON of a reply: text without thoughts, how it ended, tokens."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from common.text import thoughts
from datagen.chat.config import most_tokens

MAX_REPORTED_TOKENS = 10**9
"""Usage above this is not believed: nonsense must not distort a budget."""

UNUSABLE = {
    "content_filter": "blocked by the provider's content filter",
    "no_text": "a reply without text",
    "error": "the provider failed within the reply",
    "malformed": "malformed reply",
    "no_likelihoods": "no log-probabilities of the tokens of the prompt",
}
"""Ends of replies that are paid for but are no answers -> what they mean."""

KNOWN_ENDS = ("stop", "length", "refusal")
"""Ends of answers; any other is a word that is not known here."""

_WORDS = {
    "stop": "eos eos_token stop_token stop_sequence end_turn end_of_turn eot end complete "
    "completed done finished finish normal stopped success unspecified none null",
    "length": "max_tokens max_token max_output_tokens max_new_tokens max_length model_length limit "
    "token_limit error_limit context_length model_context_window_exceeded incomplete",
    "content_filter": "content_filtered filtered safety image_safety recitation blocklist spii "
    "prohibited_content guardrail_intervened sensitive error_toxic",
    "refusal": "refused",
    "error": "failed abort aborted cancelled canceled timeout network_error "
    "insufficient_system_resource",
}
FINISH_WORDS = {word: end for end, words in _WORDS.items() for word in [end, *words.split()]}
"""Words for the end of an answer -> stop, length (cut), content_filter, refusal or error.

Of OpenAI, Anthropic, Gemini, Mistral, Cohere, DeepSeek, Zhipu and Bedrock, and of the servers vLLM,
TGI, llama.cpp, Ollama and LM Studio.
"""

_THOUGHT_PARTS = ("thinking", "reasoning", "redacted_thinking", "reasoning_text", "summary_text")
_TEXT_PARTS = ("text", "output_text", "refusal")
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


@dataclasses.dataclass(frozen=True)
class ChatAnswer:
    """A model's reply."""

    text: str  # without thoughts
    finish_reason: str  # stop, length (cut), refusal or one of UNUSABLE; else the provider's word
    model: str  # as named by the server
    id: str  # the server's id of the reply
    input_tokens: int
    output_tokens: int  # reasoning included
    usage_reported: bool = True  # False: tokens are the most that the request could take
    thoughts: str = ""  # kept in the store, never used
    raw: str = ""  # the text as it came, where it differs

    @classmethod
    def from_json(cls, stored: str) -> Self:
        """A stored answer; one of an earlier version is read as a new one would be."""
        fields = json.loads(stored)
        text = fields.get("raw") or fields["text"]
        fields["text"], found = thoughts.split(text)
        fields["thoughts"] = fields.get("thoughts") or found
        fields["raw"] = text if fields["text"] != text else ""
        return cls(**fields | {"finish_reason": finish_reason(fields["finish_reason"])})


class _Parsed(NamedTuple):
    text: str | None
    thoughts: str
    finish: Any


def finish_reason(word: Any) -> str:
    """How an answer ended, from a server's word for it; an unknown word stays as it is.

    >>> [finish_reason(word) for word in ("eos", "MAX_TOKENS", None, "FINISH_REASON_STOP", "odd")]
    ['stop', 'length', 'stop', 'stop', 'odd']
    """
    known = re.sub(r"^finish_?reason[_.]", "", str(word or "stop").strip().lower())
    return FINISH_WORDS.get(known.replace("-", "_"), str(word))


def read_reply(provider: str, content: Mapping[str, Any], reply: Any) -> ChatAnswer:
    """The answer in a reply with status 200 to the body `content`; it may be UNUSABLE.

    Usage of zero or none counts as the most that the request could take.
    """
    if "echo" in content:
        return _read_likelihoods(content, reply)
    try:
        text, thought, word = (_anthropic if provider == "anthropic" else _openai)(reply)
        finish = finish_reason(word)
    except (KeyError, IndexError, TypeError, AttributeError):
        text, thought, finish = None, "", "malformed"
    if failure(reply) is not None:
        finish = "error"
    raw = _unicode(text or "")
    answer, found = thoughts.split(raw)
    thought = "\n".join(filter(None, (_unicode(thought), found)))
    if finish == "stop" and not answer and (text is None or thought):
        finish = "no_text"
    answered = _answer(content, reply, answer, finish, is_text=bool(raw or thought))
    return dataclasses.replace(answered, thoughts=thought, raw=raw if raw != answer else "")


def _answer(
    content: Mapping[str, Any], reply: Any, text: str, finish: str, *, is_text: bool
) -> ChatAnswer:
    """The answer with the model, id and usage of its reply."""
    tokens = _tokens(reply, is_text=is_text)
    fields = reply if isinstance(reply, dict) else {}
    model, id = (_unicode(str(fields.get(name) or "")) for name in ("model", "id"))
    usage = tokens or most_tokens(content)
    return ChatAnswer(text, finish, model, id, *usage, usage_reported=tokens is not None)


class Likelihood(NamedTuple):
    """How likely a continuation is after its prompt."""

    logprob: float  # natural logarithm, the sum over its tokens
    tokens: int
    joined: int
    """Tokens of the prompt's end that are counted, too: with some continuation the tokenizer joins
    them to others, so all are compared from the first token that differs."""


def likelihoods(answer: ChatAnswer) -> list[Likelihood]:
    """What the answer to a LikelihoodRequest says of each continuation."""
    return [Likelihood(*numbers) for numbers in json.loads(answer.text)]


def _read_likelihoods(content: Mapping[str, Any], reply: Any) -> ChatAnswer:
    """The answer to a LikelihoodRequest; its text is `likelihoods` as JSON."""
    try:
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        pairs = zip(choices, content["prompt"], strict=True)
        (prompt, _), *continued = [_echoed(*pair, content["max_tokens"]) for pair in pairs]
        start = min(_same(prompt, tokens) for tokens, _ in continued)
        sums = [sum(logprobs[start:]) for _, logprobs in continued]
        counts = [len(logprobs) - start for _, logprobs in continued]
        if min(start, *counts) < 1 or not all(map(math.isfinite, sums)):
            raise ValueError
        joined = len(prompt) - start
        text, finish = (
            json.dumps([[*pair, joined] for pair in zip(sums, counts, strict=True)]),
            "stop",
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        text, finish = "", "error" if failure(reply) is not None else "no_likelihoods"
    return _answer(content, reply, text, finish, is_text=False)


def _echoed(choice: Mapping[str, Any], prompt: str, generated: int) -> tuple[list, list]:
    """(tokens, log-probabilities) of a repeated prompt. Raises ValueError if it is another text."""
    text, expected = ("".join(each.split()) for each in (choice["text"], prompt))
    if not (text.startswith(expected) if generated else text == expected):
        raise ValueError
    scored = choice["logprobs"]
    found = scored["tokens"], scored["token_logprobs"]
    return found[0][: len(found[0]) - generated], found[1][: len(found[1]) - generated]


def _same(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many entries two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def failure(reply: Any) -> Any:
    """The error that stands in a reply with status 200, or in its choice; None: there is none."""
    if not isinstance(reply, dict):
        return None
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    within = choice.get("error") if isinstance(choice, dict) else None
    is_error = not reply.keys() & {"choices", "content"} and reply.keys() & {"message", "detail"}
    return reply.get("error") or within or (reply if is_error else None)


def describe(reply: Any) -> str:
    """The start of a reply that cannot be read, and its fields."""
    fields = f"its fields are {', '.join(map(str, reply))}; " if isinstance(reply, dict) else ""
    return f"{fields}{json.dumps(reply, ensure_ascii=False)[:150]}"


def _openai(reply: Mapping[str, Any]) -> _Parsed:
    choice = reply["choices"][0]
    message, finish = choice.get("message"), choice.get("finish_reason")
    if message is None:  # of the older completions API
        return _Parsed(_string(choice["text"]), "", finish)
    text, thought = _parts(message.get("content"))
    fields = (message.get(name) for name in _REASONING_FIELDS)
    thought = next((field for field in fields if isinstance(field, str) and field), thought)
    if refusal := message.get("refusal"):
        return _Parsed(_string(refusal), thought, "refusal")
    return _Parsed(text, thought, finish)


def _anthropic(reply: Mapping[str, Any]) -> _Parsed:
    text, thought = _parts(reply["content"])
    return _Parsed(text, thought, reply.get("stop_reason"))


def _parts(content: Any) -> tuple[str | None, str]:
    """(text, thoughts) of a message's content: a string, a part or a list of parts."""
    if content is None or isinstance(content, str):
        return content, ""
    texts, thought = [], []
    for part in [content] if isinstance(content, Mapping) else content:
        kind = "text" if isinstance(part, str) else part.get("type", "text")
        if kind in _TEXT_PARTS or kind in _THOUGHT_PARTS:
            inner = part if isinstance(part, str) else part.get("text", part.get(kind))
            text, inner_thought = _parts(inner)
            (texts if kind in _TEXT_PARTS else thought).append(text or "")
            thought.append(inner_thought)
    return "".join(texts) if texts else None, "\n".join(filter(None, thought))


def _string(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError
    return text


def _unicode(text: str) -> str:
    # Half a surrogate pair, from a cut "\\ud83d\\ude00", cannot be written to a UTF-8 file.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tokens(reply: Any, *, is_text: bool) -> tuple[int, int] | None:
    """(input, output) tokens as reported; None without a report that can be true."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    if not isinstance(usage, dict):
        return None
    # Anthropic's tokens that are read from or written to a cache are input, too.
    cached = ("cache_creation_input_tokens", "cache_read_input_tokens")
    more = [] if "prompt_tokens" in usage else [usage[name] for name in cached if usage.get(name)]
    counts: list[Any] = [
        usage.get("prompt_tokens", usage.get("input_tokens")),
        usage.get("completion_tokens", usage.get("output_tokens")),
        *more,
    ]
    if not all(type(count) is int and 0 <= count < MAX_REPORTED_TOKENS for count in counts):
        return None
    tokens = counts[0] + sum(more), counts[1]
    if not tokens[0] or (is_text and not tokens[1]):
        return None
    # Gemini and xAI leave thoughts out of completion_tokens, but charge for them.
    total = usage.get("total_tokens")
    if type(total) is int and sum(tokens) < total < MAX_REPORTED_TOKENS:
        return tokens[0], total - tokens[0]
    return tokens
