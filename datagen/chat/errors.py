"""Why a request has no answer: whether to retry it, give it up, or end the run."""


class RetryableError(Exception):
    """This attempt failed; another one may succeed."""

    def __init__(self, reason: str, *, status: int = 0, retry_after: float | None = None):
        super().__init__(reason)
        self.status = status  # of HTTP; 0 without a reply
        self.retry_after = retry_after  # seconds that the provider asks to wait

    @property
    def throttled(self) -> bool:
        """Whether the provider asks for fewer requests."""
        return self.status in (429, 529)


class RejectedRequestError(Exception):
    """This request will never be answered; others may be."""


class FatalProviderError(ValueError):
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
