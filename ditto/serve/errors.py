"""An error as HTTP says it: one status for each of `ditto.errors`, in the words of the API that was asked."""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse

from ditto.errors import (
    BadDescription,
    BadShare,
    Busy,
    CertificateError,
    ClusterError,
    DittoError,
    EmptyText,
    IntegrityError,
    Interrupted,
    JobMismatch,
    LimitExceeded,
    MessageTooLarge,
    NotAllowed,
    OutOfRange,
    PeerAbsent,
    PeerLost,
    ReplayedJob,
    TextTooLong,
    UnknownModel,
    UnsupportedArchitecture,
    UsageError,
    VersionMismatch,
)

# Everything else is 500: what this process has (files, configuration) is not as it should be.
STATUS: dict[type[DittoError], int] = {
    UsageError: 400,
    TextTooLong: 400,
    EmptyText: 400,
    UnsupportedArchitecture: 400,
    NotAllowed: 403,
    UnknownModel: 404,
    JobMismatch: 409,
    LimitExceeded: 413,
    MessageTooLarge: 413,
    OutOfRange: 422,
    Busy: 429,
    BadDescription: 502,
    BadShare: 502,
    CertificateError: 502,
    IntegrityError: 502,
    ReplayedJob: 502,
    VersionMismatch: 502,
    ClusterError: 503,
    Interrupted: 503,
    PeerAbsent: 503,
    PeerLost: 503,
}
AGAIN = {409, 429, 503}  # the same request may succeed later; of others a client is told not to repeat them
CODES = {UnknownModel: "model_not_found", TextTooLong: "context_length_exceeded"}  # where OpenAI has a word of its own


class Refused(UsageError):
    """A request that HTTP has a status of its own for. `param`: the field that it is about."""

    def __init__(self, message: str, status: int = 400, code: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.word, self.param = status, code, param


def status_of(error: DittoError) -> int:
    return error.status if isinstance(error, Refused) else STATUS.get(type(error), 500)


def openai_body(error: DittoError) -> dict[str, Any]:
    status = status_of(error)
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    word, param = (error.word, error.param) if isinstance(error, Refused) else ("", None)
    code = word or CODES.get(type(error), error.code.lower())
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def tei_body(error: DittoError) -> dict[str, Any]:
    status = status_of(error)
    kind = {429: "Overloaded", 503: "Unhealthy"}.get(status, "Backend" if status >= 500 else "Validation")
    return {"error": str(error), "error_type": kind}


def failure(path: str, error: DittoError) -> JSONResponse:
    """The answer to a request for `path`."""
    status = status_of(error)
    headers = {} if status in AGAIN else {"x-should-retry": "false"}  # what OpenAI's clients look at
    if isinstance(error, Busy):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_s)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    body = openai_body(error) if path.startswith("/v1") else tei_body(error)
    return JSONResponse(body, status, headers)
