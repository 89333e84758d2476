"""Why a request has no answer: whether to retry it, give it up, or end the run."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common import messages
from datagen.chat.config import API_KEY_VARIABLES, SECRET_VARIABLES, ChatConfig
from datagen.chat.meanings import ERROR_MEANINGS, GATEWAY_STATUSES, Meaning
from datagen.chat.rate_limit import MAX_PAUSE, seconds_until

_OF_THE_REQUEST = re.compile(r"(?:.*_)?(?:inputs?|body|prompt|messages|generation)(?:_value)?")
"""Fields of an error that repeat the request or the answer: their words say nothing about it."""

_QUOTED_INPUT = re.compile(r"""(['"])input\1: .*""", re.DOTALL)
"""The same within a message."""

_WAIT = re.compile(
    r"(?:(?:again|retry) (?:in|after)|retrydelay|wait) "
    r"(?:(?P<short>(?:[\d.]+(?:ms|h|m|s))+\b)|(?P<number>\d+) ?(?P<unit>sec|min|hour|day))"
)
_SECONDS = {"sec": 1.0, "min": 60.0, "hour": 3600.0, "day": 86400.0}


class AttemptError(Exception):
    """An attempt failed. The subclasses say what that means for its request and the run."""

    billed = False  # the provider may charge for the attempt: its outcome is unknown


class RetryableError(AttemptError):
    """This attempt failed; another one may succeed."""

    def __init__(
        self,
        reason: str,
        *,
        status: int = 0,
        retry_after: float | None = None,
        billed: bool = False,
        unsent: bool = False,
        unusable: str = "",
    ):
        super().__init__(reason)
        self.status = status  # of HTTP; 0 without a reply
        self.retry_after = retry_after  # seconds that the provider asks to wait
        self.billed = billed
        self.unsent = unsent  # there was no connection to the server
        self.unusable = unusable  # of replies.UNUSABLE: there was a reply, and it is paid for

    @property
    def throttled(self) -> bool:
        """Whether the provider asks for fewer requests."""
        return self.status in (429, 529)


class RejectedRequestError(AttemptError):
    """This request will never be answered; others may be."""

    def __init__(self, reason: str, *, own: bool = False):
        super().__init__(reason)
        self.own = own  # for a reason of this request only, such as its length


class FatalProviderError(AttemptError, ValueError):
    """No request will be answered: unknown model, no credit, invalid key."""


class NotFoundError(FatalProviderError):
    """The server has no such model, path, batch or file."""


class NotSubmittedError(RetryableError):
    """The provider did not create the batch, so it can be resubmitted without searching for it."""

    def __init__(self, reason: str, *, queue_full: bool = False, retry_after: float | None = None):
        super().__init__(reason, retry_after=retry_after)
        self.queue_full = queue_full  # the provider accepts no more queued requests


class SubmissionUnknownError(Exception):
    """It cannot be decided yet whether the provider received the batch."""


class BudgetReachedError(Exception):
    """The next request could exceed the budget."""


class RunStoppedError(ValueError):
    """The run ended before it was complete; the answers received so far are stored."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a request has no answer. It is not stored: the next run tries again."""

    reason: str
    own: bool = False  # for a reason of this request only: asking again would not help


def require_answers(outcomes: Iterable[object], total: int, path: Path) -> None:
    """Raises ValueError if an outcome is a Failure that asking again may mend.

    Args:
      path: what was written all the same.
    """
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if failures := [failure for failure in failures if not failure.own]:
        raise ValueError(
            f"{path} is incomplete: {len(failures):,} of {total:,} requests have no answer; the "
            f"first failure: {failures[0].reason}; rerun the command to request them again"
        )


def status_error(
    config: ChatConfig, status: int, body: str, retry_after: float | None = None
) -> AttemptError:
    """The exception for an error reply, whose text `body` may contain keys.

    Args:
      status: of HTTP; with 200, the code in the body counts, if there is one.
    """
    words, code = _words(body)
    billed = status in GATEWAY_STATUSES
    if status == 200:
        status = code or 500
    row = next(row for row in ERROR_MEANINGS if row.fits(status, words))
    message = short_text(f"Error code: {status} - {body}")
    retry_after = _seconds_named(words) if retry_after is None else retry_after
    wait = ""
    if (retry_after or 0) > MAX_PAUSE:
        wait = (
            f"; the provider asks to wait {messages.duration(retry_after or 0)}: rerun after that"
        )
    if row.meaning == Meaning.PASSING and not wait:
        return RetryableError(message, status=status, retry_after=retry_after, billed=billed)
    if row.meaning == Meaning.ITEM:
        return RejectedRequestError(f"{row.cause}: {message}", own=True)
    remedy = row.remedy.format(
        variable=API_KEY_VARIABLES[config.provider],
        model=config.model,
        max_tokens=config.max_tokens,
    )
    if row.meaning == Meaning.UNCLEAR:
        return RejectedRequestError(f"{message}; {remedy}")
    text = f"{config.base_url or config.provider}: {row.cause}: {message}; {remedy}{wait}"
    return (NotFoundError if status == 404 else FatalProviderError)(text)


def short_text(error: BaseException | str) -> str:
    """One line of an error, at most 300 characters, without anything that could be a key."""
    text = " ".join(str(error).split())
    for variable in SECRET_VARIABLES:
        if key := os.environ.get(variable, "").strip():
            text = text.replace(key, "[key]")
    text = re.sub(r"\bsk-[\w*.-]{4,}", "[key]", text)
    return text[:300] or type(error).__name__


def _words(body: str) -> tuple[str, int]:
    """(all words of an error in lower case, without _ and -; its code if that is a status)."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = {"message": body[:2000]}
    values = list(_scalars(content))
    codes = [str(value) for name, value in values if name in ("code", "status", "http_code")]
    code = next((int(c) for c in codes if re.fullmatch("[45][0-9][0-9]", c)), 0)
    text = " ; ".join(_QUOTED_INPUT.sub("", str(value)[:2000]) for _, value in values)
    return re.sub(r"[_-]", " ", text.lower()), code


def _scalars(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for inner, value in content.items():
            if _OF_THE_REQUEST.fullmatch(inner):
                continue
            if inner == "retryDelay":  # of Gemini: the name says more than the value
                yield inner, f"retryDelay {value}"
            yield from _scalars(value, inner)
    elif isinstance(content, list):
        for value in content:
            yield from _scalars(value, name)
    elif content is not None:
        yield name, content


def _seconds_named(words: str) -> float | None:
    """The wait that an error asks for in words.

    >>> _seconds_named("please try again in 7m12s. visit"), _seconds_named("try again later")
    (432.0, None)
    >>> _seconds_named("retry after 30 seconds"), _seconds_named("please wait 2 minutes before")
    (30.0, 120.0)
    """
    if not (found := _WAIT.search(words)):
        return None
    if found["short"]:
        return seconds_until(found["short"])
    return float(found["number"]) * _SECONDS[found["unit"]]
