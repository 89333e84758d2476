"""Why a request has no answer: whether to retry it, give it up, or end the run."""


class RetryableError(Exception):
    """This attempt failed; another one may succeed.

    Attributes:
      status: HTTP status; 0 without a reply.
      retry_after: seconds the provider asks to wait; None when it names none.
    """

    def __init__(self, reason: str, *, status: int = 0, retry_after: float | None = None):
        super().__init__(reason)
        self.status = status
        self.retry_after = retry_after

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
    """The provider did not create the batch, so it can be resubmitted without looking for it.

    Attributes:
      queue_full: the provider already holds as many queued requests as it accepts.
    """

    def __init__(self, reason: str, *, queue_full: bool = False, retry_after: float | None = None):
        super().__init__(reason, retry_after=retry_after)
        self.queue_full = queue_full


class SubmissionUnknownError(Exception):
    """Whether the provider received the batch cannot be decided yet."""


class BudgetReachedError(Exception):
    """The next request could exceed the budget."""


class RunStoppedError(ValueError):
    """The run ended before it was complete; the answers received so far are stored."""
