"""What config files share: parsing of their argument, and sections that seldom change."""

from typing import Any

from ml_collections import ConfigDict, config_dict


def parse_arg(arg: str | None, positional: str = "", **defaults) -> ConfigDict:
    """Parses `config.py:ARG`, a comma-separated list of `key=value` and bare booleans.

    A first item without "=" is the value of `positional`, if that is given:

    >>> parse_arg("llama-7b,data=alpaca", positional="variant", variant="tiny", data="x").variant
    'llama-7b'

    Raises:
      ValueError: an unknown key, or a value that is not of its default's type.
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
                raise ValueError(f"config argument {key} must be true or false, not {text!r}")
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
    """A section whose keys are fixed: a misspelled override is an error."""
    return config_dict.create(**keys)


def sharding(data: int = 1, fsdp: int = -1, tensor: int = 1) -> ConfigDict:
    """Parameters sharded over all devices (FSDP) by default."""
    return section(
        data=data,
        fsdp=fsdp,
        tensor=tensor,
        rules=section(
            layers="",
            embed="fsdp",
            vocab="tensor",
            heads="tensor",
            kv_heads="tensor",
            head_dim="",
            ffn="tensor",
            norm="",
        ),
        allow_replicated="",
    )


def lora(rank: int = 0, **changes) -> ConfigDict:
    """No LoRA by default; with a rank, all projections of a layer are adapted."""
    config = section(
        rank=rank,
        alpha=16.0,
        rslora=False,
        dropout=0.0,
        targets="q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
        base="auto",
    )
    config.update(changes)
    return config


def limits() -> dict[str, Any]:
    """No limits on what a run may spend; the keys of datagen.chat.config.Limits."""
    return {"budget_usd": 0.0, "budget_tokens": 0, "offline": False}


def chat(provider: str, model: str, max_tokens: int, **changes) -> ConfigDict:
    """Which model to ask, and its settings; the keys of datagen.chat.config.ProviderConfig."""
    config = section(
        provider=provider,
        base_url="",
        model=model,
        max_tokens=max_tokens,
        temperature=config_dict.placeholder(float),
        top_p=config_dict.placeholder(float),
        presence_penalty=config_dict.placeholder(float),
        reasoning_effort=config_dict.placeholder(str),
        extra_body="",
        concurrency=64,
        attempts=8,
        timeout_seconds=600.0,
        price_input=config_dict.placeholder(float),
        price_output=config_dict.placeholder(float),
        batch=False,
        batch_requests=50_000,
        poll_seconds=60.0,
    )
    config.update(changes)
    return config
