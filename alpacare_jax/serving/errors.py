"""What a client is answered when a request cannot be: OpenAI's form, with the remedy."""

import json
from typing import Any

RETRIED = (429, 503)
"""Statuses after which the same request may succeed; clients are advised not to repeat others."""


class ApiError(Exception):
    """A request that is not answered.

    Args:
      status: of the response; the error's `type` follows from it.
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

        self.type = "server_error" if status >= 500 else "invalid_request_error"
        if status == 429:
            self.type = "rate_limit_error"

    @property
    def kind(self) -> str:
        """What the log has of it; the message may quote a text of the client."""
        return self.code or self.type

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        found = {
            "message": self.message,
            "type": self.type,
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
