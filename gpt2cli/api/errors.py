"""What a client is told when something is wrong, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from gpt2cli.errors import Gpt2cliError, InvalidOption, PromptTooLong, UsageError

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
NAMES = {"max_new_tokens": "max_tokens", "num_return_sequences": "n"}
"""Options whose names in the API are other ones."""


class ApiError(Exception):
    """A request that is refused, or that failed; ``close`` ends its connection."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {**(headers or {}), **({"connection": "close"} if close else {})}

    @classmethod
    def of(cls, error: BaseException) -> ApiError:
        """What is to be said of a failure. Only what is wrong with the request is told: other messages may
        name paths, and belong into the log.
        """
        if isinstance(error, ApiError):
            return error
        if isinstance(error, InvalidOption):
            option = NAMES.get(error.option, error.option)
            return cls(400, f"{option}: {error.reason}", param=option)
        if isinstance(error, PromptTooLong):
            return cls(400, str(error), param="prompt", code="context_length_exceeded")
        if isinstance(error, UsageError):
            return cls(400, str(error))
        if isinstance(error, Gpt2cliError):
            return cls(500, "the model or its files failed; the server's log says how")
        return cls(500, "the server failed; this is a defect of gpt2cli")

    def document(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def unavailable(message: str) -> ApiError:
    """The server is not there yet, or not any more."""
    return ApiError(503, message, code="unavailable", headers={"retry-after": "1"})
