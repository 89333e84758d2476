"""What is asked of which model, and within which limits."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from common import sections

API_KEY_VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
"""Provider -> environment variable of its API key."""


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """One question to a model."""

    system: str  # "" for none
    user: str
    prompt_version: str  # of the prompt file that produced the texts
    sample: int = 0  # repeats a request to get another answer
    schema: Mapping[str, Any] | None = None  # JSON schema that the answer must follow


@dataclasses.dataclass(frozen=True)
class ProviderConfig:
    """Which model to ask, and how: a section of a config file."""

    provider: str  # openai (or any server with its protocol) or anthropic
    base_url: str  # "": the provider's own; http://localhost:8000/v1 for a local vLLM or Ollama
    model: str  # the provider's name of the model
    max_tokens: int  # limit on the tokens of an answer, reasoning included
    temperature: float | None  # None: not sent; many models reject it
    top_p: float | None  # None: not sent
    presence_penalty: float | None  # None: not sent
    reasoning_effort: str | None  # None: not sent
    extra_body: str  # JSON object of further request parameters
    concurrency: int  # max concurrent requests; rate limits can lower it
    attempts: int  # max attempts per request
    timeout_seconds: float  # per attempt
    price_input: float | None  # USD per million tokens; None: from datagen/prices.json
    price_output: float | None  # USD per million tokens; None: from datagen/prices.json
    batch: bool  # use the provider's batch API: half the price, takes up to 24 hours
    batch_requests: int  # max requests per batch; lower it where queued tokens are limited
    poll_seconds: float  # interval between two status checks of a batch

    def __post_init__(self):
        sections.choice("provider", self.provider, API_KEY_VARIABLES)
        positive = "max_tokens concurrency attempts timeout_seconds batch_requests poll_seconds"
        for name in positive.split():
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if set("@?") & set(self.base_url):
            raise ValueError(
                "base_url must contain no password or key; set these in the environment"
            )
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url is {self.base_url!r}, not http://... or https://...")
        if min(self.price_input or 0.0, self.price_output or 0.0) < 0:
            raise ValueError("price_input and price_output must be at least 0")
        if (self.price_input is None) != (self.price_output is None):
            raise ValueError("set both price_input and price_output, or neither")
        try:
            if not isinstance(json.loads(self.extra_body or "{}"), dict):
                raise ValueError
        except ValueError:
            raise ValueError(f"extra_body is {self.extra_body!r}, not a JSON object") from None


@dataclasses.dataclass(frozen=True)
class ChatConfig(ProviderConfig):
    """Which model to ask, within the limits of a run."""

    budget_usd: float = 0.0  # as in Limits, like the next two
    budget_tokens: int = 0
    offline: bool = False


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a run may do with any model: the first keys of a config file."""

    budget_usd: float  # hard cap on the total spending of the workdir; 0: none
    budget_tokens: int  # the same in tokens
    offline: bool  # use stored answers only

    def __post_init__(self):
        for name in ("budget_usd", "budget_tokens"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")

    def within(self, model: ProviderConfig) -> ChatConfig:
        """The settings of a model together with these limits."""
        limits = {field.name: getattr(self, field.name) for field in dataclasses.fields(Limits)}
        return ChatConfig(**vars(model), **limits)
