"""What is asked, of which model, and within which limits."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from common import sections

API_KEY_VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
"""Provider -> where its key is in the environment."""


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """One question to a model."""

    system: str  # "" for none
    user: str
    prompt_version: str  # of the prompt file that the texts were made from
    sample: int = 0  # asks the same again, for another answer
    schema: Mapping[str, Any] | None = None  # JSON schema that the answer must follow


@dataclasses.dataclass(frozen=True)
class ProviderConfig:
    """Whom to ask, and how: a section of a config file."""

    provider: str  # openai (and any server that speaks its protocol) or anthropic
    base_url: str  # "" for the provider's own; http://localhost:8000/v1 for vLLM, Ollama, ours
    model: str
    max_tokens: int  # most tokens of an answer, reasoning included
    temperature: float | None  # None, here and below: not sent; many models refuse it
    top_p: float | None
    presence_penalty: float | None
    reasoning_effort: str | None
    extra_body: str  # JSON object of whatever else is to be sent
    concurrency: int  # most requests out at once; rate limits are kept below it
    attempts: int  # most times one request is sent
    timeout_seconds: float  # for one attempt
    price_input: float | None  # USD per million tokens; None: from datagen/prices.json
    price_output: float | None
    batch: bool  # at half price through the provider's batch API; takes up to 24 hours
    batch_requests: int  # most in one batch; lower it where the provider limits queued tokens
    poll_seconds: float  # between two looks at a batch

    def __post_init__(self):
        sections.choice("provider", self.provider, API_KEY_VARIABLES)
        above_zero = ("max_tokens", "concurrency", "attempts", "timeout_seconds")
        for name in (*above_zero, "batch_requests", "poll_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if set("@?") & set(self.base_url):
            raise ValueError(
                "base_url must hold no password or key; these come from the environment"
            )
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url is {self.base_url!r}, not http://... or https://...")
        if min(self.price_input or 0.0, self.price_output or 0.0) < 0:
            raise ValueError("price_input and price_output must be at least 0")
        if (self.price_input is None) != (self.price_output is None):
            raise ValueError("give price_input and price_output, or neither")
        try:
            if not isinstance(json.loads(self.extra_body or "{}"), dict):
                raise ValueError
        except ValueError:
            raise ValueError(f"extra_body is {self.extra_body!r}, not a JSON object") from None


@dataclasses.dataclass(frozen=True)
class ChatConfig(ProviderConfig):
    """Whom to ask, within the limits of a run."""

    budget_usd: float = 0.0  # as in Limits, as the next two
    budget_tokens: int = 0
    offline: bool = False


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a run may do, whomever it asks: the first keys of a config file."""

    budget_usd: float  # hard cap on all that the workdir has spent; 0: none
    budget_tokens: int  # the same in tokens
    offline: bool  # answer from the store only

    def __post_init__(self):
        for name in ("budget_usd", "budget_tokens"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")

    def within(self, model: ProviderConfig) -> ChatConfig:
        limits = {field.name: getattr(self, field.name) for field in dataclasses.fields(Limits)}
        return ChatConfig(**vars(model), **limits)
