"""Reading the fields of a request: each is known, of its type and in its range, or an error."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from alpacare_jax.serving.errors import ApiError, shown, wrong_value
from common.messages import suggestion

MAX_DEPTH = 64
"""Levels of nesting in a body; the deepest that a request needs, a JSON schema's, has some ten."""


def read_json(content: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
      ApiError: it is no JSON object, nests deeply, repeats a field, or has a number or text that is
        none.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((repeated, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"{shown(repeated)} is there more than once")
        return found

    try:
        text = content.decode("utf-8-sig")  # some clients begin with a byte order mark
        found = json.loads(text, parse_constant=no_constant, object_pairs_hook=once)
        _check(found, MAX_DEPTH)
    except RecursionError:
        raise ApiError(400, f"the body nests more than {MAX_DEPTH} levels; flatten it") from None
    except UnicodeError:
        raise ApiError(400, "the body is not UTF-8 text; encode it as UTF-8") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON ({cause(error)}); correct it") from None
    if not isinstance(found, dict):
        raise ApiError(400, f"the body must be a JSON object, not {shown(found)}")
    return found


def cause(error: Exception) -> str:
    """Why a text is not JSON; a limit of Python's own is named in our words."""
    is_long = "integer string conversion" in str(error)
    return "a number has thousands of digits" if is_long else str(error)


def no_constant(name: str) -> NoReturn:
    """Refuses NaN and Infinity, which Python reads where JSON has no such numbers."""
    raise ValueError(f"{name} is not a number of JSON")


def _check(value: Any, depth: int) -> None:
    """Raises ValueError for half a surrogate pair or an infinite number, and RecursionError."""
    if depth < 0:
        raise RecursionError
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{shown(value)} has half a surrogate pair") from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is beyond what a float holds")
    elif isinstance(value, dict | list):
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            _check(inner, depth - 1)


class Fields:
    """The fields of an object; each is taken once, and `finish` reports those that were not.

    null counts as absent, as in OpenAI's protocol. All methods raise ApiError for a field that is
    not as they require.

    Args:
      prefix: of the names in errors, such as `messages[0].`.
    """

    def __init__(self, content: Mapping[str, Any], prefix: str = ""):
        self._left, self._known, self.prefix = dict(content), [], prefix

    def take(self, name: str, default: Any = None) -> Any:
        """The value as it is."""
        self._known.append(name)
        value = self._left.pop(name, None)
        return default if value is None else value

    def number(self, name: str, default: Any, low: float, high: float) -> Any:
        """An integer if `low` is one, else a float; from `low` to `high`."""
        value = self.take(name, default)
        if value is default:
            return default
        whole = isinstance(low, int)
        kinds, noun = ((int,), "an integer") if whole else ((int, float), "a number")
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            limits = f"from {low:,} to {high:,}"
            raise self.wrong(name, f"is {shown(value)}; it must be {noun} {limits}")
        return value if whole else float(value)

    def flag(self, name: str) -> bool:
        """A boolean; False if it is absent."""
        return self.typed(name, bool, "true or false", False)

    def text(self, name: str, default: str | None = None) -> Any:
        """A text."""
        return self.typed(name, str, "a text", default)

    def typed(self, name: str, kind: type, noun: str, default: Any = None) -> Any:
        """A value of this type."""
        value = self.take(name, default)
        if value is not default and not isinstance(value, kind):
            raise self.wrong(name, f"is {shown(value)}; it must be {noun}")
        return value

    def required(self, name: str, remedy: str, kind: type = object, noun: str = "") -> Any:
        """A value of this type; an error if it is absent."""
        value = self.typed(name, kind, noun)
        if value is None:
            raise self.wrong(name, f"is missing; {remedy}", "missing_required_parameter")
        return value

    def unsupported(self, neutral: Mapping[str, Any], reason: str = "is not supported") -> None:
        """Takes fields that have no effect at their neutral values, and are errors at others."""
        for name, value in neutral.items():
            found = self.take(name, value)
            if found != value or isinstance(found, bool) != isinstance(value, bool):
                remedy = (
                    "leave it out" if value is None else f"leave it out, or send {shown(value)}"
                )
                raise self.wrong(name, f"{reason}; {remedy}", "unsupported_parameter")

    def finish(self) -> None:
        """Reports a field that is unknown, with the one that may be meant."""
        for name in self._left:
            hint = suggestion(name, self._known, "leave it out")
            problem = f"is not a field of this request; {hint}"
            raise self.wrong(name[:80], problem, "unknown_parameter")

    def wrong(self, name: str, problem: str, code: str | None = None) -> ApiError:
        """The error of one of the fields."""
        return wrong_value(self.prefix + name, problem, code)


def each(prefix: str, values: list[Any], read: Callable[[Fields], Any]) -> list[Any]:
    """`read` of each object of a list; one that is none is an error."""
    found = []
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise wrong_value(f"{prefix}[{number}]", f"is {shown(value)}; it must be an object")
        fields = Fields(value, f"{prefix}[{number}].")
        found.append(read(fields))
        fields.finish()
    return found
