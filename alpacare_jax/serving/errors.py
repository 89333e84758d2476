"""What a client is answered when a request cannot be: OpenAI's form, with the remedy."""

import json
from typing import Any

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_answer_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""The `type` of an error by its status."""

RETRIED = (429, 503)
"""Statuses after which the same request may succeed; clients are advised not to repeat others."""


class ApiError(Exception):
    """A request that is not answered.

    Args:
      param: the field that is wrong.
      code: what programs compare.
      headers: further headers of the response.
      more: further fields of the error.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        more: dict[str, Any] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.more = status, message, more or {}
        self.param, self.code = param, code
        self.headers = {"x-should-retry": str(status in RETRIED).lower()} | (headers or {})

    @property
    def kind(self) -> str:
        """What the log has of it; the message may quote a text of the client."""
        return self.code or ERROR_TYPES[self.status]

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        found = {
            "message": self.message,
            "type": ERROR_TYPES[self.status],
            "param": self.param,
            "code": self.code,
        }
        return {"error": found | self.more}


def wrong_value(field: str, problem: str, code: str | None = None) -> ApiError:
    """The error of a field with a wrong value."""
    return ApiError(400, f"{field} {problem}", param=field, code=code)


def shown(value: Any) -> str:
    """A value of a request for a message: short, and in ASCII.

    >>> shown("x" * 99), shown({"a": [1]}), shown("\\ud800")
    ('"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...', '{"a": [1]}', '"\\\\ud800"')
    """
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:38]}..."
