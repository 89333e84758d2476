"""Why a request has no answer: whether to retry it, give it up, or end the run."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path


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
    ):
        super().__init__(reason)
        self.status = status  # of HTTP; 0 without a reply
        self.retry_after = retry_after  # seconds that the provider asks to wait
        self.billed = billed
        self.unsent = unsent  # there was no connection to the server

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
