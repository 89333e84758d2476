"""A config file's sections become frozen dataclasses at once, so that no misspelt key lives on."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")


def build(config: type[Config], content: Mapping[str, Any]) -> Config:
    """`config` from `ConfigDict.to_dict()`; fields that are dataclasses themselves are sections.

    Raises:
      ValueError: a section or key is unknown (the nearest known one is named), missing or bad.
    """
    types = {field.name: field.type for field in dataclasses.fields(config)}
    _same_keys("config", content, types)
    sections = {}
    for name, section in types.items():
        sections[name] = content[name]
        if dataclasses.is_dataclass(section):
            keys = [field.name for field in dataclasses.fields(section)]
            _same_keys(f"config.{name}", content[name], keys)
            sections[name] = section(**content[name])
    return config(**sections)


def choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError where `value` is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose from {', '.join(choices)}")


def _same_keys(where: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{where} has no key {key!r}; {hint}")
    if missing := [key for key in known if key not in given]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
