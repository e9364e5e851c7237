"""Errors as problem documents (RFC 9457)."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from perk.errors import InvalidInput
from service.api.fields import FieldError, parameter_errors
from service.errors import (
    DocumentFailed,
    DocumentNotFound,
    DocumentNotReady,
    ExtractionFailed,
    NotReady,
    QueueFull,
    RateExceeded,
    ServiceError,
    StorageFull,
    StoreError,
    TokensSpent,
    TookTooLong,
    TooManyDocuments,
    TooManyTokens,
)
from service.metrics import Metrics

__all__ = [
    "MEDIA_TYPE",
    "Problem",
    "ProblemError",
    "as_problem",
    "invalid_fields",
    "is_openai_path",
    "problem_response",
]

MEDIA_TYPE = "application/problem+json"

# Seconds after which what is not ready may be.
_RETRY_SECONDS = 5


@dataclass(frozen=True)
class Problem:
    """What is told to the client.

    Attributes:
        name: kind of problem, the last part of its type; one of a few.
        status: HTTP status.
        detail: a sentence.
        errors: the fields that are wrong.
        headers: for the response.
    """

    name: str
    status: int
    detail: str
    errors: tuple[FieldError, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)

    def body(self, instance: str) -> dict[str, Any]:
        """The problem document.

        Args:
            instance: path of the request.
        """
        body: dict[str, Any] = {
            "type": f"urn:perk:problem:{self.name}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
        }
        if self.errors:
            body["errors"] = [error.body() for error in self.errors]
        return body

    def openai_body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        code = "model_not_found" if self.name == "not-found" else self.name.replace("-", "_")
        param = self.errors[0].field if self.errors else "model" if self.name == "not-found" else None
        return {"error": {"message": self.detail, "type": _openai_type(self.status), "param": param, "code": code}}


class ProblemError(Exception):
    """A request that is refused before anything is done for it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.name)
        self.problem = problem


def invalid_fields(*errors: FieldError) -> Problem:
    """A problem that names fields."""
    return Problem("invalid-field", 422, "; ".join(error.sentence for error in errors), errors)


def as_problem(error: Exception) -> Problem:
    """What to tell the client of an error."""
    match error:
        case ProblemError():
            return error.problem
        case InvalidInput():
            return invalid_fields(FieldError(error.field, error.value, error.limit))
        case RequestValidationError():
            return invalid_fields(*parameter_errors(error.errors()))
        case HTTPException():
            return _of_framework(error)
        case ServiceError():
            return _of_service(error)
        case _:
            return Problem("internal", 500, "an internal error; the log has it under this request's id")


def _openai_type(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case status if status >= 500:
            return "server_error"
        case _:
            return "invalid_request_error"


def _of_framework(error: HTTPException) -> Problem:
    headers = dict(error.headers or {})
    match error.status_code:
        case 404:
            return Problem("not-found", 404, "there is nothing at this path")
        case 405:
            return Problem(
                "method-not-allowed", 405, f"this path takes {headers.get('Allow', 'other methods')}", (), headers
            )
        case status:
            return Problem("refused", status, str(error.detail), headers=headers)


def _of_service(error: ServiceError) -> Problem:
    detail = str(error)
    match error:
        case DocumentNotFound():
            return Problem("not-found", 404, detail)
        case DocumentNotReady():
            return Problem("document-not-ready", 409, detail, headers=_retry_after(error.retry_after))
        case DocumentFailed():
            return Problem("document-failed", 409, detail)
        case TooManyTokens():
            errors = (FieldError("text", f"more than {error.limit} tokens", f"at most {error.limit} tokens"),)
            return Problem("document-too-large", 413, detail, errors)
        case ExtractionFailed():
            return invalid_fields(FieldError("file", error.value, error.limit))
        case TooManyDocuments():
            return Problem("too-many-documents", 403, detail)
        case RateExceeded():
            return Problem("rate-exceeded", 429, detail, headers=_limited(error.limit, error.retry_after))
        case TokensSpent():
            return Problem("tokens-spent", 429, detail, headers=_retry_after(error.retry_after))
        case QueueFull():
            return Problem("queue-full", 429, detail, headers=_retry_after(error.retry_after))
        case TookTooLong():
            return Problem("took-too-long", 504, detail)
        case NotReady():
            return Problem("not-ready", 503, f"{error.reason}: {detail}", headers=_retry_after(_RETRY_SECONDS))
        case StorageFull():
            return Problem("disk-full", 503, detail, headers=_retry_after(_RETRY_SECONDS))
        case StoreError():
            return Problem("store-unavailable", 503, detail, headers=_retry_after(_RETRY_SECONDS))
        case _:
            return Problem("unavailable", 503, detail, headers=_retry_after(_RETRY_SECONDS))


def problem_response(request: Request, problem: Problem) -> JSONResponse:
    """The response, counted."""
    metrics: Metrics = request.app.state.engine.metrics
    metrics.rejected.labels(problem.name).inc()
    if is_openai_path(request):
        return JSONResponse(problem.openai_body(), status_code=problem.status, headers=problem.headers)
    return JSONResponse(
        problem.body(request.url.path), status_code=problem.status, headers=problem.headers, media_type=MEDIA_TYPE
    )


def is_openai_path(request: Request) -> bool:
    """Whether errors of this path are OpenAI's error object."""
    return request.url.path.startswith("/v1/")


def _limited(limit: int, seconds: int) -> dict[str, str]:
    conventional = {"X-RateLimit-Limit": str(limit), "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(seconds)}
    return conventional | _retry_after(seconds)


def _retry_after(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}
