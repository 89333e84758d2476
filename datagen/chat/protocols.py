"""The two chat protocols: building a request body and reading a reply.

Bodies are plain JSON, so the config decides which parameters a model gets, not an SDK.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from datagen.chat.config import ChatConfig, ChatRequest
from datagen.chat.errors import RetryableError
from datagen.chat.store import ChatAnswer

BLOCKED_BY_FILTER = "blocked by the provider's content filter"
"""Reason of a reply that is paid for but is no answer; another attempt may pass."""

MAX_REPORTED_TOKENS = 10**9
"""Usage above this is not believed: nonsense must not distort a budget."""

ANTHROPIC_FINISH_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}


def body(config: ChatConfig, request: ChatRequest) -> dict[str, Any]:
    """The JSON that is sent for a request."""
    settings = ("temperature", "top_p", "presence_penalty")
    content: dict[str, Any] = {"model": config.model} | {
        name: getattr(config, name) for name in settings if getattr(config, name) is not None
    }
    user = {"role": "user", "content": request.user}
    if config.provider == "anthropic":
        content |= {"max_tokens": config.max_tokens, "messages": [user]}
        if request.system:
            content["system"] = request.system
        output: dict[str, Any] = {}
        if config.reasoning_effort:
            output["effort"] = config.reasoning_effort
        if request.schema:
            output["format"] = {"type": "json_schema", "schema": request.schema}
        if output:
            content["output_config"] = output
    else:
        system = [{"role": "system", "content": request.system}] if request.system else []
        content["messages"] = [*system, user]
        # OpenAI's reasoning models reject the old name; many servers know no other.
        limit = "max_tokens" if config.base_url else "max_completion_tokens"
        content[limit] = config.max_tokens
        if config.reasoning_effort:
            content["reasoning_effort"] = config.reasoning_effort
        if request.schema:
            schema = {"name": "answer", "schema": request.schema, "strict": True}
            content["response_format"] = {"type": "json_schema", "json_schema": schema}
    return content | json.loads(config.extra_body or "{}")


def size(content: Mapping[str, Any]) -> int:
    """Bytes of a body: an upper bound on its tokens with any tokenizer."""
    return len(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def key(config: ChatConfig, request: ChatRequest, content: Mapping[str, Any]) -> str:
    """Hash of everything that can change the answer; `content` is the request's `body`."""
    hashed = {
        "provider": config.provider,
        "base_url": config.base_url,
        "body": content,
        "prompt_version": request.prompt_version,
        "sample": request.sample,
    }
    text = json.dumps(hashed, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_reply(provider: str, content: Mapping[str, Any], reply: Any) -> ChatAnswer:
    """The answer in a reply with status 200 to the body `content`.

    Raises:
      RetryableError: there is none: no choices, or neither a text nor a reason for its absence.
    """
    try:
        text, finish, tokens = (_read_anthropic if provider == "anthropic" else _read_openai)(reply)
        names = str(finish), str(reply.get("model", "")), str(reply.get("id", ""))
        text, finish, model, id = map(_unicode, (text, *names))
        reported = all(type(n) is int and 0 <= n < MAX_REPORTED_TOKENS for n in tokens)
        if not reported:
            tokens = (len(json.dumps(content)) // 4, len(text.encode()) // 4)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise RetryableError(f"malformed reply: {json.dumps(reply)[:100]}") from None
    return ChatAnswer(text, finish, model, id, *tokens, usage_reported=reported)


def _unicode(text: str) -> str:
    # Half a surrogate pair, from a cut "\\ud83d\\ude00", cannot be written to a UTF-8 file.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_openai(reply: Mapping[str, Any]) -> tuple[str, str, tuple]:
    choice = reply["choices"][0]
    message, finish = choice["message"], choice["finish_reason"] or "stop"
    if message.get("refusal"):
        text, finish = message["refusal"], "refusal"
    elif isinstance(message.get("content"), str):
        text = message["content"]
    elif finish == "stop":
        raise KeyError("content")
    else:
        text = ""
    usage = reply.get("usage") or {}
    return text, finish, (usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _read_anthropic(reply: Mapping[str, Any]) -> tuple[str, str, tuple]:
    finish = ANTHROPIC_FINISH_REASONS.get(reply["stop_reason"], reply["stop_reason"]) or "stop"
    text = "".join(part["text"] for part in reply["content"] if part["type"] == "text")
    usage = reply.get("usage") or {}
    # Tokens read from or written to a cache are input, too.
    kinds = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    total = sum(usage.get(kind) or 0 for kind in kinds) if "input_tokens" in usage else None
    return text, finish, (total, usage.get("output_tokens"))
