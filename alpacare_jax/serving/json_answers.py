"""Answers that must be JSON, and follow a schema: checked, since nothing constrains the model.

Schemas come from clients: they reach no network, and their cost is bounded.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import referencing
import referencing.exceptions
from jsonschema import Draft202012Validator, SchemaError, ValidationError, validators

from alpacare_jax.serving.fields import no_constant

MAX_SCHEMA, MAX_CHECKS = 65_536, 20_000
"""Characters of a schema, and how often its keywords are applied to an answer."""

COSTLY = frozenset({"pattern", "patternProperties", "$dynamicRef"})
"""Keywords whose cost nothing bounds."""


def schema_problem(schema: Mapping[str, Any]) -> str:
    """Why this cannot be used as a schema; "" if it can."""
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA:
        return f"has {len(text):,} characters; at most {MAX_SCHEMA:,} are allowed"
    if used := sorted(COSTLY & {*_names(schema)}):
        return f"has {used[0]}, which is not supported; leave it out"
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return f"is no JSON schema: {error.message[:200]}"
    except RecursionError:
        return "nests too deeply; flatten it"
    return ""


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from _names(inner)


def answer_problem(text: str, schema: Mapping[str, Any] | None) -> str:
    """Why a text is not the JSON that was asked for; "" if it is. Without a schema: any object."""
    try:
        found = json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        return f"the answer is not JSON ({error})"
    if schema is None:
        return "" if isinstance(found, dict) else "the answer is not a JSON object"
    try:
        error = next(_validator(schema).iter_errors(found), None)
    except referencing.exceptions.Unresolvable as missing:
        return f"the schema refers to what it does not have ({str(missing)[:100]})"
    except (_TooCostly, RecursionError):
        return "the schema takes too long to check; make it simpler"
    return f"the answer does not follow the schema ({error.message[:200]})" if error else ""


class _TooCostly(Exception):  # noqa: N818 - it ends a check, and nobody else sees it
    pass


def _validator(schema: Mapping[str, Any]) -> Any:
    """A validator that fetches nothing, and gives up after MAX_CHECKS."""
    left = MAX_CHECKS

    def limited(check: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
        def checked(*arguments: Any) -> Iterator[ValidationError]:
            nonlocal left
            left -= 1
            if left < 0:
                raise _TooCostly
            yield from check(*arguments) or ()

        return checked

    keywords = {name: limited(check) for name, check in Draft202012Validator.VALIDATORS.items()}
    kind = validators.extend(Draft202012Validator, keywords)
    return kind(schema, registry=referencing.Registry())
