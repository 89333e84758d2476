"""What the config files share: their string argument and the sections that seldom change."""

from typing import Any

from ml_collections import ConfigDict, config_dict


def parse_arg(arg: str | None, positional: str = "", **defaults) -> ConfigDict:
    """Parses `config.py:ARG`, a comma-separated list of `key=value` and bare booleans.

    The first item without "=" is the value of `positional`, where that is given:

    >>> parse_arg("llama-7b,data=alpaca", positional="variant", variant="tiny", data="x").variant
    'llama-7b'

    Raises:
      ValueError: an unknown key or a value that its default's type does not read.
    """
    values = dict(defaults)
    for i, item in enumerate(filter(None, (arg or "").split(","))):
        key, equals, text = item.partition("=")
        if i == 0 and not equals and positional:
            key, equals, text = positional, "=", key
        if key not in defaults:
            known = f"choose from {', '.join(defaults)}" if defaults else "this file takes none"
            raise ValueError(f"unknown config argument {key!r}; {known}")
        kind = type(defaults[key])
        if kind is bool:
            if text.lower() not in ("", "true", "1", "false", "0"):
                raise ValueError(f"config argument {key} is a yes/no, not {text!r}")
            values[key] = text.lower() in ("", "true", "1")
        else:
            try:
                values[key] = kind(text)
            except ValueError:
                raise ValueError(
                    f"config argument {key} must be {kind.__name__}, not {text!r}"
                ) from None
    return ConfigDict(values)


def section(**keys) -> ConfigDict:
    """A section whose keys are fixed: a misspelt override is an error."""
    return config_dict.create(**keys)


def sharding(data: int = 1, fsdp: int = -1, tensor: int = 1) -> ConfigDict:
    """Weights sharded over all devices (FSDP) unless told otherwise."""
    return section(
        data=data,  # mesh axis: rows of the batch are spread, weights are whole
        fsdp=fsdp,  # mesh axis: rows of the batch and weights are spread; -1: all that is left
        tensor=tensor,  # mesh axis: heads and ffn are spread
        rules=section(  # logical axis of a weight -> mesh axis; empty: not spread
            layers="",
            embed="fsdp",
            vocab="tensor",
            heads="tensor",
            kv_heads="tensor",
            head_dim="",
            ffn="tensor",
            norm="",
        ),
        allow_replicated="",  # large weights meant to have copies: "lm_head,embed_tokens"
    )


def limits() -> dict[str, Any]:
    """What a run may do, whomever it asks."""
    return {
        "budget_usd": 0.0,  # hard cap on all that the workdir has spent; 0: none
        "budget_tokens": 0,  # the same in tokens
        "offline": False,  # answer from the store only
    }


def chat(provider: str, model: str, max_tokens: int, **changes) -> ConfigDict:
    """Whom to ask, and how; the keys of datagen.chat.config.ProviderConfig."""
    config = section(
        provider=provider,  # openai (and any server that speaks its protocol) or anthropic
        base_url="",  # "": the provider's own; http://localhost:8000/v1 for vLLM, Ollama, ours
        model=model,
        max_tokens=max_tokens,  # most tokens of an answer, reasoning included
        temperature=config_dict.placeholder(float),  # None: not sent; many models refuse it
        top_p=config_dict.placeholder(float),
        presence_penalty=config_dict.placeholder(float),
        reasoning_effort=config_dict.placeholder(str),
        extra_body="",  # JSON object of whatever else is to be sent
        concurrency=64,  # most requests out at once; rate limits are kept below it
        attempts=8,  # most times one request is sent
        timeout_seconds=600.0,  # for one attempt
        price_input=config_dict.placeholder(float),  # USD a million tokens; None: prices.json
        price_output=config_dict.placeholder(float),
        batch=False,  # at half price through the provider's batch API; takes up to 24 hours
        batch_requests=50_000,  # most in one batch; lower it where queued tokens are limited
        poll_seconds=60.0,  # between two looks at a batch
    )
    config.update(changes)
    return config
