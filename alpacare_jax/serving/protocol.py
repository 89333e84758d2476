"""OpenAI's requests for chats and completions, checked field by field.

A field is used, or it is an error that names it. Only those of `BOOKKEEPING` are accepted without
an effect, since an answer does not depend on them; the response names them in a header.
"""

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from alpacare_jax.inference.requests import MAX_LOGPROBS
from alpacare_jax.inference.sampling import Sampling
from alpacare_jax.serving.errors import shown, wrong_value
from alpacare_jax.serving.fields import Fields, each
from alpacare_jax.serving.json_answers import schema_problem
from common.sections import UsageError
from common.text.conversations import Turn

BOOKKEEPING = (
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
)
"""Fields that identify a request for its sender, or say how it is paid for."""

MAX_CHOICES, MAX_STOPS, MAX_STOP_LENGTH = 128, 16, 256
"""OpenAI takes 4 stops; tasks of harnesses, as HumanEval's, have more."""

ROLES_OF_MESSAGES = {name: name for name in ("system", "user", "assistant")}
ROLES_OF_MESSAGES["developer"] = "system"
"""Roles of OpenAI's messages -> ours."""

MOST_TOKENS = 2**31 - 1
"""Of any limit; what the model has room for is checked with the prompt."""

NO_TOOLS = "is not supported, for the model was not trained to call tools"
TOOLS_NEUTRAL = {
    "function_call": "none",
    "functions": [],
    "parallel_tool_calls": True,
    "tool_choice": "none",
    "tools": [],
}
CHAT_NEUTRAL = {"modalities": ["text"], "store": False} | dict.fromkeys(
    ("audio", "moderation", "prediction", "reasoning_effort", "verbosity", "web_search_options")
)
COMPLETION_NEUTRAL = {"suffix": None, "store": False}
MESSAGE_NEUTRAL = {"annotations": [], "tool_calls": []} | dict.fromkeys(
    ("audio", "function_call", "name", "refusal")
)
"""Fields of OpenAI's that are not supported, at the values at which they have no effect. Those of
messages are in the answers of OpenAI's client, which are sent back with the next question."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What chats and completions have in common."""

    model: str
    n: int  # answers to each prompt
    max_tokens: int | None  # None: as many as there is room for
    sampling: Sampling
    stop: tuple[str, ...]
    logprobs: int | None  # number of alternatives to each token; None: no log-probabilities
    stream: bool
    include_usage: bool  # at the end of a stream
    ignored: tuple[str, ...]  # fields that were sent, of BOOKKEEPING


@dataclasses.dataclass(frozen=True)
class ChatCall:
    """A request for /v1/chat/completions."""

    options: Options
    history: tuple[Turn, ...]
    question: str
    json: bool  # whether the answer must be JSON
    schema: Mapping[str, Any] | None  # that it must follow


@dataclasses.dataclass(frozen=True)
class CompletionCall:
    """A request for /v1/completions."""

    options: Options
    prompts: Sequence[str | Sequence[int]]
    echo: bool  # whether the prompt is a part of the answer


def chat_call(content: Mapping[str, Any], vocab_size: int) -> ChatCall:
    """Reads the body of a chat. Raises ApiError where a field is wrong or unknown."""
    fields = Fields(content)
    history, question = _conversation(fields)
    has_logprobs = fields.flag("logprobs")
    top = fields.number("top_logprobs", None, 0, MAX_LOGPROBS)
    if top is not None and not has_logprobs:
        raise fields.wrong("top_logprobs", "requires logprobs; set logprobs to true")
    newer = fields.number("max_completion_tokens", None, 1, MOST_TOKENS)
    limit = fields.number("max_tokens", newer, 1, MOST_TOKENS)
    if newer not in (None, limit):
        raise fields.wrong("max_tokens", "differs from max_completion_tokens; send one of them")
    is_json, schema = _response_format(fields)
    fields.unsupported(TOOLS_NEUTRAL, NO_TOOLS)
    fields.unsupported(CHAT_NEUTRAL)
    options = _options(fields, vocab_size, limit, (top or 0) if has_logprobs else None)
    fields.finish()
    return ChatCall(options, history, question, is_json, schema)


def completion_call(content: Mapping[str, Any], vocab_size: int) -> CompletionCall:
    """Reads the body of a completion; max_tokens is 16 where it is absent, as OpenAI's.

    Raises:
      ApiError: a field is wrong or unknown.
    """
    fields = Fields(content)
    prompts = _prompts(fields, vocab_size)
    echo = fields.flag("echo")
    logprobs = fields.number("logprobs", None, 0, MAX_LOGPROBS)
    limit = fields.number("max_tokens", 16, 0, MOST_TOKENS)
    if limit == 0 and not echo:
        raise fields.wrong("max_tokens", "is 0; it must be at least 1 without echo")
    fields.unsupported(COMPLETION_NEUTRAL)
    options = _options(fields, vocab_size, limit, logprobs)
    best_of = fields.number("best_of", options.n, 1, MAX_CHOICES)
    if best_of != options.n:
        raise fields.wrong("best_of", "differs from n, which is not supported; leave it out")
    fields.finish()
    return CompletionCall(options, prompts, echo)


def _options(
    fields: Fields, vocab_size: int, max_tokens: int | None, logprobs: int | None
) -> Options:
    model = fields.required("model", "GET /v1/models lists the models", str, "a text")
    stream = fields.flag("stream")
    include_usage = False
    if (given := fields.typed("stream_options", dict, "an object")) is not None:
        if not stream:
            raise fields.wrong("stream_options", "requires stream; set stream to true")
        inner = Fields(given, "stream_options.")
        include_usage = inner.flag("include_usage")
        inner.unsupported({"include_obfuscation": False})
        inner.finish()
    ignored = tuple(name for name in BOOKKEEPING if fields.take(name) is not None)
    return Options(
        model=model,
        n=fields.number("n", 1, 1, MAX_CHOICES),
        max_tokens=max_tokens,
        sampling=_sampling(fields, vocab_size),
        stop=_stops(fields),
        logprobs=logprobs,
        stream=stream,
        include_usage=include_usage,
        ignored=ignored,
    )


def _sampling(fields: Fields, vocab_size: int) -> Sampling:
    """Temperature and top_p are 1 where they are absent, as OpenAI's; the seed is drawn.

    The engine's seeds have 32 bits, which are the lower ones of a longer seed.
    """
    seed = fields.number("seed", None, -(2**63), 2**63 - 1)
    settings = {
        "temperature": fields.number("temperature", 1.0, 0.0, 2.0),
        "top_p": fields.number("top_p", 1.0, 0.0, 1.0),
        "top_k": fields.number("top_k", 0, 0, 2**31 - 1),
        "repetition_penalty": fields.number("repetition_penalty", 1.0, 0.01, 100.0),
        "presence_penalty": fields.number("presence_penalty", 0.0, -2.0, 2.0),
        "frequency_penalty": fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        "seed": secrets.randbits(32) if seed is None else seed % 2**32,
        "logit_bias": _logit_bias(fields, vocab_size),
    }
    try:
        return Sampling(**settings)
    except UsageError as error:
        name = str(error).partition(" ")[0]
        raise wrong_value(name, str(error).removeprefix(f"{name} ")) from None


def _logit_bias(fields: Fields, vocab_size: int) -> dict[int, float]:
    given = fields.typed("logit_bias", dict, "an object: token id -> number", {})
    biases = Fields(given, "logit_bias.")
    for name in given:
        is_id = name.isascii() and name.isdecimal() and len(name) < 9 and str(int(name)) == name
        if not is_id or int(name) >= vocab_size:
            raise biases.wrong(
                name[:20], f"is not the id of a token; the vocabulary has 0 to {vocab_size - 1:,}"
            )
    return {int(name): biases.number(name, 0.0, -100.0, 100.0) for name in given}


def _stops(fields: Fields) -> tuple[str, ...]:
    given = fields.take("stop", [])
    stops = [given] if isinstance(given, str) else given
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_LENGTH for stop in stops)
    ):
        raise fields.wrong(
            "stop",
            f"is {shown(given)}; it must be a text, or a list of at most {MAX_STOPS}, each of 1 to "
            f"{MAX_STOP_LENGTH} characters",
        )
    return tuple(stops)


def _prompts(fields: Fields, vocab_size: int) -> Sequence[str | Sequence[int]]:
    """One or several prompts, each a text or ids."""
    given = fields.required("prompt", "send a text, a list of token ids, or a list of either")
    is_one = isinstance(given, str) or (isinstance(given, list) and any(map(_is_id, given[:1])))
    prompts: Any = [given] if is_one else given
    if not isinstance(prompts, list) or not prompts:
        raise fields.wrong("prompt", f"is {shown(given)}; send a text or a list of token ids")
    if all(isinstance(prompt, str) for prompt in prompts):
        return prompts
    for ids in prompts:
        if not isinstance(ids, list) or not all(map(_is_id, ids)):
            raise fields.wrong(
                "prompt", "mixes texts, ids and others; send a text, token ids, or a list of either"
            )
        if wrong := [number for number in ids if not 0 <= number < vocab_size]:
            raise fields.wrong(
                "prompt",
                f"has the token id {shown(wrong[0])}; the vocabulary has 0 to {vocab_size - 1:,}",
            )
    return prompts


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _response_format(fields: Fields) -> tuple[bool, Mapping[str, Any] | None]:
    """Whether an answer must be JSON, and the schema that it must follow."""
    given = fields.typed("response_format", dict, "an object", {})
    inner = Fields(given, "response_format.")
    kind = inner.text("type", "text")
    if kind not in ("text", "json_object", "json_schema"):
        raise inner.wrong("type", f"is {shown(kind)}; choose text, json_object or json_schema")
    schema = None
    if kind == "json_schema":
        remedy = "send an object with name and schema"
        outer = inner.required("json_schema", remedy, dict, "an object")
        details = Fields(outer, "response_format.json_schema.")
        for name in ("name", "description"):
            details.text(name)
        details.flag("strict")
        schema = {**details.typed("schema", dict, "a JSON schema", {})}
        schema.pop("$schema", None)  # each is read as one of draft 2020-12
        if problem := schema_problem(schema):
            raise details.wrong("schema", problem)
        details.finish()
    inner.finish()
    return kind != "text", schema


def _conversation(fields: Fields) -> tuple[tuple[Turn, ...], str]:
    """What precedes the question, and the question, which must be the last message."""
    given = fields.required("messages", "send a list of messages")
    if not isinstance(given, list) or not given:
        raise fields.wrong("messages", f"is {shown(given)}; it must be a list of messages")
    turns = each("messages", given, _turn)
    first = int(turns[0].role == "system")
    for number, turn in enumerate(turns[first:], first):
        expected = ("user", "assistant")[(number - first) % 2]
        if turn.role != expected:
            raise wrong_value(
                f"messages[{number}].role",
                f"is {turn.role} where {expected} must speak; after an optional system message "
                "user and assistant alternate",
            )
    if turns[-1].role != "user":
        raise fields.wrong("messages", "must end with a message of the user, which is answered")
    return tuple(turns[:-1]), turns[-1].text


def _turn(fields: Fields) -> Turn:
    role = fields.required("role", f"choose from {', '.join(ROLES_OF_MESSAGES)}")
    if not isinstance(role, str) or role not in ROLES_OF_MESSAGES:
        problem = f"is {shown(role)}; choose from {', '.join(ROLES_OF_MESSAGES)}"
        raise fields.wrong("role", problem)
    content = fields.required("content", "send a text")
    if isinstance(content, list):
        content = "".join(each(f"{fields.prefix}content", content, _part))
    if not isinstance(content, str):
        raise fields.wrong("content", f"is {shown(content)}; it must be a text")
    fields.unsupported(MESSAGE_NEUTRAL)
    return Turn(ROLES_OF_MESSAGES[role], content)


def _part(fields: Fields) -> str:
    if (kind := fields.take("type")) != "text":
        raise fields.wrong("type", f"is {shown(kind)}; the model reads text only")
    return fields.required("text", "send a text", str, "a text")
