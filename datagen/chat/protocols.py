"""The two chat protocols: building a request body, its key and its highest possible cost.

Bodies are plain JSON, so the config decides which parameters a model gets, not an SDK.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from datagen.chat.config import ChatConfig, ChatRequest

LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Names of the limit on an answer's tokens, in different servers and versions."""


def body(config: ChatConfig, request: ChatRequest) -> dict[str, Any]:
    """The JSON that is sent for a request; parameters that are null in `extra_body` are left out.

    Raises:
      ValueError: `extra_body` leaves out every limit on the tokens of an answer.
    """
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
    content |= json.loads(config.extra_body or "{}")
    content = {name: value for name, value in content.items() if value is not None}
    if not any(type(content.get(name)) is int for name in LIMITS):
        raise ValueError(
            "extra_body leaves out the limit on an answer's tokens, so no budget could hold; give "
            f"one of {', '.join(LIMITS)}"
        )
    return content


def size(content: Mapping[str, Any]) -> int:
    """Bytes of a body: an upper bound on its tokens with any tokenizer."""
    return len(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def most_tokens(content: Mapping[str, Any]) -> tuple[int, int]:
    """Upper bound on the (input, output) tokens of a request."""
    limit = max(content[name] for name in LIMITS if type(content.get(name)) is int)
    return size(content), limit * max(1, content.get("n") or 1)


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
