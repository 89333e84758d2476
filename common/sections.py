"""A config file's sections become frozen dataclasses at once, so that no misspelled key survives.

The comment beside a field is its documentation: `--help` prints it.
"""

import ast
import dataclasses
import difflib
import inspect
import math
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, cast, get_args

from common.messages import suggestion

Config = TypeVar("Config")

TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
TYPES |= {types.NoneType: "None"}

FLOAT32_LEAST, FLOAT32_MOST = 1e-37, 1e38
"""Of a float's magnitude: beyond these, float32 has zeros and infinities."""


class UsageError(ValueError):
    """A wrong flag, config file, key or value: the command ends with exit code 2."""

    exit_code = 2


class Key(NamedTuple):
    """One key of a config."""

    name: str  # dotted, as in --config.NAME=VALUE
    comment: str


def build(config: type[Config], content: Mapping[str, Any]) -> Config:
    """`config` from `ConfigDict.to_dict()`; fields that are dataclasses themselves are sections.

    Raises:
      UsageError: a section or key is unknown (the nearest known one is named), is missing, or has
        a value of another type, or that its dataclass or `require_numbers` rejects.
    """
    values = _checked("config", "", config, content)
    require_numbers(flatten(content))
    try:
        for field in dataclasses.fields(cast(Any, config)):
            name, section = field.name, field.type
            if isinstance(section, type) and dataclasses.is_dataclass(section):
                values[name] = section(
                    **_checked(f"config.{name}", f"{name}.", section, values[name])
                )
        return config(**values)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def require_numbers(values: Mapping[str, Any]) -> None:
    """Raises UsageError for a float that float32 cannot hold, or an integer beyond 64 bits."""
    for name, value in values.items():
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UsageError(f"{name} is {value}; integers must be below 2^63")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name} is {value}; it must be a finite number")
        if isinstance(value, float) and value and not FLOAT32_LEAST <= abs(value) <= FLOAT32_MOST:
            raise UsageError(
                f"{name} is {value}; float32 holds 0, and {FLOAT32_LEAST} to {FLOAT32_MOST}"
            )


def choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError where `value` is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose from {', '.join(choices)}")


def _checked(section: str, prefix: str, config: Any, given: Any) -> dict[str, Any]:
    """`given`, which must have the keys of a dataclass, each with a value of its type."""
    if not isinstance(given, Mapping):
        raise UsageError(f"{section} is {given!r:.80}; it must be a section of keys")
    fields = {field.name: field.type for field in dataclasses.fields(config)}
    for key in given:
        if key not in fields:
            raise UsageError(f"{section} has no key {key!r}; {suggestion(key, fields)}")
    if missing := [key for key in fields if key not in given]:
        raise UsageError(f"{section} is missing {', '.join(missing)}")
    for key, kind in fields.items():
        kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        if not TYPES.keys() >= {*kinds} or type(given[key]) in kinds:
            continue
        number = isinstance(given[key], int | float) and not isinstance(given[key], bool)
        if not (number and float in kinds):
            words = " or ".join(TYPES[each] for each in kinds)
            raise UsageError(f"{prefix}{key} is {given[key]!r:.80}; it must be {words}")
    return dict(given)


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name.

    >>> flatten({"train": {"seed": 1}, "profile": ""})
    {'train.seed': 1, 'profile': ''}
    """
    flat = {}
    for key, value in content.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def keys(config: type, prefix: str = "") -> Iterator[Key]:
    """The keys of a config class and of its sections, each with the comment beside its field."""
    comments = _comments(config)
    for field in dataclasses.fields(config):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from keys(field.type, f"{prefix}{field.name}.")
        else:
            yield Key(prefix + field.name, comments.get(field.name, ""))


def _comments(config: type) -> dict[str, str]:
    """Field -> its comment: at the end of its line, else the lines above it or the string below."""
    comments: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        lines = source.splitlines()
        (definition,) = ast.parse(source).body
        body = cast(ast.ClassDef, definition).body
        for node, following in zip(body, [*body[1:], None], strict=True):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            _, mark, comment = lines[(node.end_lineno or 0) - 1][node.end_col_offset :].partition(
                "#"
            )
            above = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.strip().startswith("#"):
                    break
                above.insert(0, line.strip().lstrip("# "))
            if not mark and above:
                comment = " ".join(above)
            elif not mark and isinstance(following, ast.Expr):
                comment = " ".join(str(ast.literal_eval(following.value)).split())
            comments[node.target.id] = comment.strip()
    return comments


def similar_keys(name: str, known: Iterable[str]) -> list[str]:
    """The dotted keys that somebody who wrote `name` may have meant, the likeliest first.

    >>> known = ["optimizer.learning_rate", "train.seed", "data.max_length"]
    >>> similar_keys("learning_rate", known), similar_keys("lr", known)
    (['optimizer.learning_rate'], ['optimizer.learning_rate'])
    >>> similar_keys("optimizer.maxlength", known), similar_keys("zzz", known)
    (['data.max_length'], [])
    >>> similar_keys("optimiser", known)
    ['optimizer']
    """
    known = list(known)
    leaf = name.rpartition(".")[2]
    by_leaf: dict[str, list[str]] = {}
    for key in known:
        by_leaf.setdefault(key.rpartition(".")[2], []).append(key)
    if leaf in by_leaf:
        return by_leaf[leaf]
    initials = {"".join(word[:1] for word in key.split("_")): key for key in by_leaf}
    if leaf in initials:
        return by_leaf[initials[leaf]]
    if near := difflib.get_close_matches(leaf, by_leaf, n=1):
        return by_leaf[near[0]]
    return difflib.get_close_matches(name, {key.partition(".")[0] for key in known}, n=1)
