"""Replies of /v1/completions with `echo`, by a model and a tokenizer that are easy to check."""

import re
import zlib
from typing import Any


def tokens(text: str) -> list[str]:
    """Words with the space before them; ";" is joined to the word behind it."""
    return re.findall(r"\s*;?\s*[^\s;]+|\s+", text)


def logprob(before: str, token: str) -> float:
    """Any number that depends on the text so far, and falls with the length of the token."""
    return -(zlib.crc32((before + token).encode()) % 1000) / 300 - len(token) / 10


def echoed(body: dict[str, Any]) -> dict[str, Any]:
    """The reply to a body with a list of prompts; their choices in no order, as a server may."""
    choices, count = [], 0
    for index, prompt in enumerate(body["prompt"]):
        parts, before, scores = tokens(prompt), "", []
        for part in parts:
            scores.append(logprob(before, part) if before else None)
            before += part
        count += len(parts)
        logprobs = {"tokens": parts, "token_logprobs": scores}
        choices.append({"index": index, "text": prompt, "logprobs": logprobs})
    usage = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
    return {"id": "cmpl-1", "model": "stand-in-1", "choices": choices[::-1], "usage": usage}


def likelihood(prompt: str, continuation: str) -> float:
    """The sum that a harness computes: over the tokens behind those of the prompt."""
    parts = tokens(prompt + continuation)
    start = len(tokens(prompt))
    return sum(logprob("".join(parts[:i]), parts[i]) for i in range(start, len(parts)))
