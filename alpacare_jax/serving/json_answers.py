"""Answers that must be JSON, and follow a schema: checked, since nothing constrains the model.

Schemas come from clients: they reach no network, their cost is bounded, and what the library
cannot do with one is no error of the server.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import referencing
import referencing.exceptions
from jsonschema import Draft202012Validator, ValidationError, validators

from alpacare_jax.serving.fields import cause, no_constant

MAX_SCHEMA, CHECK_SECONDS = 65_536, 2.0
"""Characters of a schema, and the processor's time to check it, or an answer."""

COSTLY = frozenset({"pattern", "patternProperties", "$dynamicRef", "$schema"})
"""Keywords whose cost nothing bounds; with the last, a part is checked without these bounds."""


def schema_problem(schema: Mapping[str, Any]) -> str:
    """Why this cannot be used as a schema; "" if it can."""
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA:
        return f"has {len(text):,} characters; at most {MAX_SCHEMA:,} are allowed"
    if used := sorted(COSTLY & {*_names(schema)}):
        return f"has {used[0]}, which is not supported; leave it out"
    return _problem(_limited(Draft202012Validator.META_SCHEMA), schema, "is no JSON schema")


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
        return f"the answer is not JSON ({cause(error)})"
    if schema is None:
        return "" if isinstance(found, dict) else "the answer is not a JSON object"
    validator = _limited(schema, registry=referencing.Registry())  # which fetches nothing
    problem = _problem(validator, found, "does not follow the schema")
    return problem and f"the answer {problem}"


def _problem(validator: Any, value: Any, wrong: str) -> str:
    """What is wrong with a value, as the end of a sentence; "" if nothing is."""
    try:
        error = next(validator.iter_errors(value), None)
    except referencing.exceptions.Unresolvable as missing:
        return f"cannot be checked: the schema refers to what it lacks ({str(missing)[:100]})"
    except (_TooCostly, RecursionError):
        return "takes too long to check; make the schema simpler"
    except Exception as error:  # noqa: BLE001 - of numbers and references that the library fails at
        return f"cannot be checked by this schema ({type(error).__name__}); make it simpler"
    return f"{wrong} ({error.message[:200]})" if error else ""


class _TooCostly(Exception):  # noqa: N818 - it ends a check, and nobody else sees it
    pass


def _limited(schema: Mapping[str, Any], **settings: Any) -> Any:
    """A validator that gives up after CHECK_SECONDS of the processor's time."""
    end = time.thread_time() + CHECK_SECONDS

    def limited(check: Callable[..., Any]) -> Callable[..., Iterator[ValidationError]]:
        def checked(*arguments: Any) -> Iterator[ValidationError]:
            if time.thread_time() > end:
                raise _TooCostly
            yield from check(*arguments) or ()

        return checked

    checks = Draft202012Validator.VALIDATORS | {"uniqueItems": _unique_items}
    keywords = {name: limited(check) for name, check in checks.items()}
    return validators.extend(Draft202012Validator, keywords)(schema, **settings)


def _unique_items(_: Any, wanted: bool, found: Any, __: Any) -> Iterator[ValidationError]:
    """In one pass; the library compares every two items that have no order."""
    if wanted and isinstance(found, list) and len({*map(_comparable, found)}) < len(found):
        yield ValidationError("an array has equal items")


def _comparable(value: Any) -> Any:
    """Equal for equal values of JSON, among which 1 is 1.0 and not true; can be hashed."""
    if isinstance(value, dict):
        return frozenset((name, _comparable(inner)) for name, inner in value.items())
    if isinstance(value, list):
        return tuple(map(_comparable, value))
    return (bool, value) if isinstance(value, bool) else value
